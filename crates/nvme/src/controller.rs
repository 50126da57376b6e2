//! A controller from reset to shutdown: NVM Express Base Specification 2.0, sections 3.5 and 3.6, and the PCIe Transport
//! Specification 1.0.

use crate::{
    BusAddr, Cap, Cc, Cns, Command, ControllerIdentity, Csts, DmaBuf, Door, Error, LentQueue, Namespace, PrpList,
    Registers, Version,
    identify::IDENTIFY_BYTES,
    queue::{End, QueuePair},
    registers::{ACQ, AQA, ASQ, CAP, CC, CSTS, DOORBELLS, VS},
};
use std::{sync::Arc, time::Duration};

/// How a controller is used.
#[derive(Clone, Debug)]
pub struct Options {
    /// I/O queue pairs; fewer if the controller gives fewer.
    pub queues: u16,
    /// I/O queue pairs besides, to be lent to others.
    pub spare: u16,
    /// Entries of each: one more than commands may be outstanding. Fewer if the controller takes fewer.
    pub depth: u32,
    /// The most bytes that one command transfers; fewer if the controller takes fewer (MDTS).
    pub max_transfer: usize,
    /// What a command may take.
    pub timeout: Duration,
    /// What it may take to end once its abort was asked for.
    pub abort_timeout: Duration,
    /// How often a command is tried before it has failed.
    pub attempts: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            queues: 1,
            spare: 0,
            depth: 64,
            max_transfer: 1 << 20,
            timeout: Duration::from_secs(10),
            abort_timeout: Duration::from_secs(1),
            attempts: 4,
        }
    }
}

/// Entries of the admin queues: commands are sent one by one. 2 would do; some controllers want more.
const ADMIN_DEPTH: u32 = 32;

/// A controller that is enabled, and its queues.
pub struct Controller {
    door: Arc<dyn Door>,
    options: Options,
    cap: Cap,
    page: usize,
    admin: QueuePair,
    /// Admin commands that were sent: their tags.
    admin_commands: u64,
    /// Where Identify's data goes.
    identify: DmaBuf,
    identity: Option<ControllerIdentity>,
    pub(crate) queues: Vec<QueuePair>,
    lent: Vec<LentQueue>,
    /// I/O queues that the controller gives.
    given: u16,
    list_pages: usize,
    max_transfer: usize,
    resets: u64,
    /// The controller may be writing memory.
    running: bool,
}

impl Controller {
    /// Resets the controller behind `door`, enables it, and creates I/O queues. Whatever state it was left in, by a driver that is
    /// gone or a program that died, ends here.
    ///
    /// # Errors
    /// If nobody answers, the controller does not do what it should in time, or is none that this driver knows.
    pub fn open(door: Arc<dyn Door>, options: Options) -> Result<Controller, Error> {
        door.check()?;
        let (name, cap) = (door.name().to_owned(), Cap(door.read64(CAP)));
        if cap.0 == u64::MAX {
            return Err(Error::Gone { device: name });
        }
        let refuse = |reason: String| Error::Refused { device: name.clone(), reason };
        if !cap.nvm_command_set() {
            return Err(refuse("the controller does not know the NVM command set (CAP.CSS)".into()));
        }
        if door.bytes() < DOORBELLS + 2 * cap.doorbell_stride() {
            return Err(refuse(format!("{} bytes of registers are too few", door.bytes())));
        }
        if cap.min_page() > cap.max_page() || cap.min_page() > 64 << 10 {
            return Err(refuse(format!("memory pages of {} bytes are too large", cap.min_page())));
        }
        let page = cap.min_page();
        let depth = ADMIN_DEPTH.min(cap.max_queue_entries());
        if depth < 2 || options.depth < 2 {
            return Err(Error::Depth { device: name, asked: options.depth, max: cap.max_queue_entries() });
        }
        let memory = door.allocate(QueuePair::bytes(depth, page, 1))?;
        let admin =
            QueuePair::new(0, depth, page, 1, memory).ok_or(Error::Scattered { device: name.clone(), depth })?;
        let identify = door.allocate(IDENTIFY_BYTES.max(page))?;
        let mut controller = Controller {
            door,
            options,
            cap,
            page,
            admin,
            admin_commands: 0,
            identify,
            identity: None,
            queues: Vec::new(),
            lent: Vec::new(),
            given: 0,
            list_pages: 0,
            max_transfer: 0,
            resets: 0,
            running: false,
        };
        controller.disable()?;
        // Not before: what was in flight when the one before was kept from the bus would go on, into memory that is others' now.
        controller.door.set_bus_master(true)?;
        controller.enable()?;
        controller.identify_controller()?;
        controller.create_queues()?;
        Ok(controller)
    }

    /// The device's address.
    pub fn name(&self) -> &str {
        self.door.name()
    }

    /// The way to the device.
    pub fn door(&self) -> &Arc<dyn Door> {
        &self.door
    }

    /// Capabilities.
    pub fn cap(&self) -> Cap {
        self.cap
    }

    /// Who it is.
    pub fn identity(&self) -> &ControllerIdentity {
        self.identity.as_ref().expect("identified when it was opened")
    }

    /// The most bytes of one command.
    pub fn max_transfer(&self) -> usize {
        self.max_transfer
    }

    /// How many I/O queues there are, and entries of each.
    pub fn queues(&self) -> (usize, u32) {
        (self.queues.len(), self.queues.first().map_or(0, QueuePair::depth))
    }

    /// Bytes of a memory page (CC.MPS).
    pub fn page(&self) -> usize {
        self.page
    }

    /// How often it was reset since it was opened.
    pub fn resets(&self) -> u64 {
        self.resets
    }

    /// Completions that were of no outstanding command, since it was opened. A sound controller has none.
    pub fn strays(&self) -> u64 {
        self.admin.strays() + self.queues.iter().map(QueuePair::strays).sum::<u64>()
    }

    /// How it is used.
    pub fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn registers(&self) -> &dyn Registers {
        &*self.door
    }

    /// Ids of the namespaces that there are, up to 1024 of them.
    ///
    /// # Errors
    /// If the controller does not answer.
    pub fn namespaces(&mut self) -> Result<Vec<u32>, Error> {
        // The list came with version 1.1; before, all ids up to NN were active.
        if Version(self.door.read32(VS)).0 < 0x0001_0100 {
            return Ok((1..=self.identity().namespaces.min(1024)).collect());
        }
        let data = self.identify(Cns::ActiveNamespaces, 0, "Identify (active namespaces)")?;
        let ids = data.as_chunks::<4>().0.iter().map(|&id| u32::from_le_bytes(id));
        Ok(ids.take_while(|&id| id != 0).collect())
    }

    /// Namespace `id`, of which a command takes one block at least.
    ///
    /// # Errors
    /// If there is none, or its format cannot be read.
    pub fn namespace(&mut self, id: u32) -> Result<Namespace, Error> {
        let device = self.door.name().to_owned();
        // 0 is none, and FFFFFFFFh all of them (Base Specification, section 3.2.1.2).
        if matches!(id, 0 | u32::MAX) {
            return Err(Error::Refused { device, reason: format!("there is no namespace {id}") });
        }
        let data = self.identify(Cns::Namespace, id, "Identify (namespace)")?;
        let namespace = Namespace::new(&device, id, &data)?;
        let (block, most) = (namespace.block_bytes, self.max_transfer);
        if block > most {
            let reason = format!("namespace {id} has blocks of {block} bytes, but a command transfers {most} at most");
            return Err(Error::Refused { device, reason });
        }
        Ok(namespace)
    }

    /// Resets the controller and issues all outstanding commands again. That is another attempt of those that did not complete in
    /// time, and of all if `all`; those that had as many as the options allow end as timed out.
    ///
    /// # Errors
    /// If the controller does not come back. It is of no use then.
    pub(crate) fn reset(&mut self, all: bool) -> Result<(), Error> {
        let mut result = self.try_reset();
        for _ in 1..self.options.attempts {
            match result {
                Err(Error::Fatal { .. } | Error::Timeout { .. } | Error::Command { .. }) => result = self.try_reset(),
                _ => break,
            }
        }
        result?;
        let (deadline, attempts) = (self.door.now() + self.options.timeout, self.options.attempts);
        for queue in &mut self.queues {
            queue.reissue(all, attempts, deadline);
            queue.ring(&*self.door, self.cap);
        }
        Ok(())
    }

    fn try_reset(&mut self) -> Result<(), Error> {
        self.resets += 1;
        self.disable()?;
        self.queues.iter_mut().for_each(QueuePair::restart);
        self.lent.iter().for_each(LentQueue::clear);
        self.enable()?;
        self.ask_for_queues(self.given)?;
        self.create_all()
    }

    /// Resets the controller. Queues that were lent are empty then, and what was outstanding in them is forgotten; what is outstanding in
    /// the driver's own is issued again.
    ///
    /// # Errors
    /// If the controller does not come back. It is of no use then.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.reset(false)
    }

    /// Whether it is in a state to answer.
    ///
    /// # Errors
    /// If it has failed, is gone, or a driver of the kernel's has it.
    pub fn health(&self) -> Result<(), Error> {
        self.door.check()?;
        let (device, csts) = (self.door.name().to_owned(), Csts(self.door.read32(CSTS)));
        match csts {
            _ if csts.is_gone() => Err(Error::Gone { device }),
            _ if csts.is_fatal() => Err(Error::Fatal { device }),
            _ => Ok(()),
        }
    }

    /// Asks for the abort of command `cid` of I/O queue `queue`. It completes, aborted or not, in its own queue.
    pub(crate) fn abort(&mut self, queue: u16, cid: u16) -> Result<(), Error> {
        self.admin(Command::abort(queue, cid), "Abort").map(drop)
    }

    /// CC.EN to 0, and CSTS.RDY follows: the controller forgets all queues and no longer writes memory.
    fn disable(&mut self) -> Result<(), Error> {
        self.door.check()?;
        let csts = Csts(self.door.read32(CSTS));
        if csts.is_gone() {
            return Err(Error::Gone { device: self.door.name().to_owned() });
        }
        let cc = Cc(self.door.read32(CC));
        if cc.is_enabled() {
            self.door.write32(CC, cc.disabled().0);
        }
        self.wait_for("become disabled (CSTS.RDY 0)", self.cap.ready_timeout(), |csts| !csts.is_ready())?;
        self.running = false;
        self.admin.abandon();
        Ok(())
    }

    /// Tells of the admin queues and sets CC.EN to 1 (section 3.5.1).
    fn enable(&mut self) -> Result<(), Error> {
        let [submissions, completions] = self.admin.addresses();
        let from_0 = self.admin.depth() - 1;
        self.door.write32(AQA, from_0 << 16 | from_0);
        self.door.write64(ASQ, submissions.0);
        self.door.write64(ACQ, completions.0);
        self.running = true;
        self.door.write32(CC, Cc::enabled(self.page).0);
        self.wait_for("become ready (CSTS.RDY 1)", self.cap.ready_timeout(), Csts::is_ready)?;
        self.health()
    }

    fn wait_for(&self, what: &'static str, timeout: Duration, done: impl Fn(Csts) -> bool) -> Result<(), Error> {
        // CAP.TO may be 0; what is left to wait for then takes no time, but some.
        let timeout = timeout.max(Duration::from_millis(500));
        let start = self.door.now();
        loop {
            let csts = Csts(self.door.read32(CSTS));
            if csts.is_gone() {
                return Err(Error::Gone { device: self.door.name().to_owned() });
            }
            if done(csts) {
                return Ok(());
            }
            if self.door.now() - start > timeout {
                return Err(Error::Stuck { device: self.door.name().to_owned(), what, timeout });
            }
            self.door.pause();
        }
    }

    fn identify_controller(&mut self) -> Result<(), Error> {
        let data = self.identify(Cns::Controller, 0, "Identify (controller)")?;
        let identity = ControllerIdentity::new(&data);
        let limit = identity.max_transfer(self.cap.min_page()).unwrap_or(usize::MAX);
        self.max_transfer = self.options.max_transfer.min(limit).max(self.page);
        self.list_pages = PrpList::pages_for(self.max_transfer, self.page);
        self.identity = Some(identity);
        Ok(())
    }

    fn identify(&mut self, cns: Cns, namespace: u32, name: &str) -> Result<[u8; IDENTIFY_BYTES], Error> {
        let bus = self.identify.bus().contiguous(0, IDENTIFY_BYTES).expect("a page is contiguous");
        self.admin(Command::identify(cns, namespace, bus), name)?;
        let mut bytes = [0; IDENTIFY_BYTES];
        self.identify.copy_to(0, &mut bytes);
        Ok(bytes)
    }

    fn create_queues(&mut self) -> Result<(), Error> {
        let wanted = self.options.queues.max(1);
        self.ask_for_queues(wanted.saturating_add(self.options.spare))?;
        let depth = self.options.depth.min(self.cap.max_queue_entries());
        for id in 1..=wanted.min(self.given) {
            let memory = self.door.allocate(QueuePair::bytes(depth, self.page, self.list_pages))?;
            let queue = QueuePair::new(id, depth, self.page, self.list_pages, memory);
            let device = || self.door.name().to_owned();
            self.queues.push(queue.ok_or_else(|| Error::Scattered { device: device(), depth })?);
        }
        self.create_all()
    }

    /// Asks the controller for so many I/O queue pairs, which has to be done between reset and creation, and notes how many it gives.
    fn ask_for_queues(&mut self, count: u16) -> Result<(), Error> {
        // Doorbells have to be among the registers, which is nothing to rely on a device for.
        let with_doorbells = (self.door.bytes() - DOORBELLS) / (2 * self.cap.doorbell_stride());
        if with_doorbells < 2 {
            let reason = format!("its {} bytes of registers have no doorbells of I/O queues", self.door.bytes());
            return Err(Error::Refused { device: self.door.name().to_owned(), reason });
        }
        let result = self.admin(Command::set_number_of_queues(count), "Set Features (Number of Queues)")?;
        let given = (result & 0xffff).min(result >> 16) as usize + 1;
        self.given = given.min(with_doorbells - 1).min(count.into()) as u16;
        let in_use = self.queues.len() + self.lent.len();
        if usize::from(self.given) < in_use {
            return Err(self.no_queue());
        }
        Ok(())
    }

    fn no_queue(&self) -> Error {
        Error::NoQueue { device: self.door.name().to_owned(), given: self.given.into() }
    }

    /// Tells the controller of all queues that there are.
    fn create_all(&mut self) -> Result<(), Error> {
        let own = self.queues.iter().map(|queue| (queue.id(), queue.depth(), queue.addresses()));
        let all: Vec<_> = own.chain(self.lent.iter().map(|queue| (queue.id, queue.depth, queue.addresses))).collect();
        all.into_iter().try_for_each(|(id, depth, addresses)| self.create(id, depth, addresses))
    }

    fn create(&mut self, id: u16, depth: u32, [submissions, completions]: [BusAddr; 2]) -> Result<(), Error> {
        self.admin(Command::create_completion_queue(id, depth, completions), "Create I/O Completion Queue")?;
        let made = self.admin(Command::create_submission_queue(id, depth, submissions), "Create I/O Submission Queue");
        if let Err(Error::Command { .. }) = made {
            // Without the other the completion queue would only be in the way of the next one of its number, in memory that the caller has back.
            self.admin(Command::delete_completion_queue(id), "Delete I/O Completion Queue")?;
        }
        made.map(drop)
    }

    /// Makes a queue pair of `depth` entries in `memory` ([`LentQueue::bytes`]) for somebody else to drive, one of
    /// [`Options::spare`]. It is there until [`take_back`](Self::take_back); a reset of the controller empties it.
    ///
    /// # Errors
    /// If there is none to spare, the depth is none that the controller takes, or the memory is not contiguous on the bus.
    pub fn lend(&mut self, depth: u32, memory: DmaBuf) -> Result<LentQueue, Error> {
        let (device, max) = (self.door.name().to_owned(), self.cap.max_queue_entries());
        if !(2..=max).contains(&depth) {
            return Err(Error::Depth { device, asked: depth, max });
        }
        let taken = |id: u16| self.queues.iter().any(|q| q.id() == id) || self.lent.iter().any(|q| q.id == id);
        let id = (1..=self.given).find(|&id| !taken(id)).ok_or_else(|| self.no_queue())?;
        let queue = LentQueue::new(id, depth, self.page, self.cap, memory).ok_or(Error::Scattered { device, depth })?;
        self.create(id, depth, queue.addresses)?;
        self.lent.push(queue.clone());
        Ok(queue)
    }

    /// Deletes a queue pair that was lent. What was outstanding in it is aborted.
    ///
    /// # Errors
    /// If the controller refuses.
    pub fn take_back(&mut self, queue: &LentQueue) -> Result<(), Error> {
        // The submission queue first (Base Specification, section 5.6).
        self.admin(Command::delete_submission_queue(queue.id), "Delete I/O Submission Queue")?;
        self.admin(Command::delete_completion_queue(queue.id), "Delete I/O Completion Queue")?;
        self.lent.retain(|lent| lent.id != queue.id);
        Ok(())
    }

    /// Sends an admin command and waits for its completion; the result is its first dword.
    fn admin(&mut self, command: Command, name: &str) -> Result<u32, Error> {
        let (device, timeout) = (self.door.name().to_owned(), self.options.timeout);
        if !self.admin.has_room() {
            return Err(Error::Stuck { device, what: "answer admin commands", timeout });
        }
        let start = self.door.now();
        self.admin_commands += 1;
        let tag = self.admin_commands;
        self.admin.submit(command, None, tag, start + timeout).expect("without data there are no PRPs");
        self.admin.ring(&*self.door, self.cap);
        loop {
            let ended = self.admin.next_end();
            self.admin.acknowledge(&*self.door, self.cap);
            if let Some((slot, End::Completed(completion))) = ended {
                if self.admin.release(slot).tag != tag {
                    // The late answer to a command that nobody waits for any more.
                    continue;
                }
                let (command, status) = (name.to_owned(), completion.status());
                return match status.is_success() {
                    true => Ok(completion.result()),
                    false => Err(Error::Command { device, command, status, attempts: 1 }),
                };
            }
            self.health()?;
            if self.door.now() - start > timeout {
                return Err(Error::Timeout { device, command: name.to_owned(), timeout, attempts: 1 });
            }
            self.door.pause();
        }
    }

    /// Shuts the controller down (section 3.6.1), so that its cache is written, and disables it.
    ///
    /// # Errors
    /// If it does not stop. Then it is kept from the bus, and if that fails too, or a driver of the kernel's has it, the memory that it may write is
    /// never freed.
    pub fn close(mut self) -> Result<(), Error> {
        self.stop()
    }

    fn stop(&mut self) -> Result<(), Error> {
        if !self.running {
            return Ok(());
        }
        if let Err(error) = self.door.check() {
            // It is the other driver's now, down to the bus master bit. Once that has reset it, nothing of ours is written; nobody tells when.
            self.running = false;
            self.leak();
            return Err(error);
        }
        let timeout = self.options.timeout;
        let shut_down = self.health().and_then(|()| {
            let cc = Cc(self.door.read32(CC));
            self.door.write32(CC, cc.shutting_down().0);
            self.wait_for("shut down (CSTS.SHST 10b)", timeout, Csts::is_shut_down)
        });
        // Also where the shutdown failed: what matters is that no memory is written.
        let disabled = self.disable();
        let off = self.door.set_bus_master(false);
        if disabled.is_err() && off.is_err() {
            self.leak();
        }
        self.running = false;
        disabled.and(shut_down).and(off)
    }

    /// Keeps all memory that the controller may still write, for ever.
    fn leak(&mut self) {
        self.admin.leak();
        self.queues.iter_mut().for_each(QueuePair::leak);
        std::mem::forget((self.identify.clone(), self.lent.clone()));
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // Nobody is left to be told of an error; `stop` has made it safe.
        let _ = self.stop();
    }
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut f = f.debug_struct("Controller");
        f.field("name", &self.name()).field("page", &self.page).field("queues", &self.queues.len()).finish()
    }
}
