//! Memory that is gone when it is to be taken, though it was there for the plan: the model runs with less of it, which is said once.

use std::{cell::RefCell, sync::Arc};

use ntransformer::{
    device::cuda::{
        CudaDevice,
        driver::Driver,
        emulator::{EmulatorDriver, Machine},
    },
    engine::{DeviceChoice, EngineError, LoadOptions, Runner, Session},
    gguf::Gguf,
    model::Model,
    stream::{
        DiskReads,
        plan::{Access, RamAccess},
    },
};

use super::{models, placement::Small};

const PASSES: [&[u32]; 2] = [&[1, 5], &[3]];
/// What is streamed goes through the ring, also where that has no room for more than one layer.
const COPY: RamAccess = RamAccess::Only(Access::Copy);

thread_local! {
    static SAID: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn said() -> Vec<String> {
    SAID.take()
}

struct Setup {
    small: Small,
    machine: Machine,
    expected: Vec<f32>,
    /// Device memory that holds the whole model, and that the least plan takes.
    full: u64,
    least: u64,
}

impl Setup {
    fn new() -> Self {
        let small = Small::of("Q8_0");
        let gguf = Arc::new(Gguf::open(&small.path).unwrap());
        let mut resident = models::open(DeviceChoice::Emulator, &gguf, None);
        let expected = models::logits_of_passes(&mut *resident, PASSES);
        let plan = |options: &LoadOptions| {
            let mut dev = CudaDevice::new(EmulatorDriver::new(0));
            let model = Model::new(gguf.clone(), None, 64).unwrap();
            ntransformer::engine::plan_for(&mut dev, &model, options, &DiskReads::Auto).unwrap().plan
        };
        let plan = plan(&LoadOptions { wanted: 64, ram_access: COPY, ..Default::default() });
        let headroom = EmulatorDriver::new(0).headroom();
        let (full, least) = (plan.vram_full + headroom, plan.vram_least + headroom);
        Setup { small, machine: Machine::new(full), expected, full, least }
    }

    /// Loads the model; `meanwhile` is called when the plan is made and nothing is loaded, each time that this is so.
    fn load(
        &self,
        streaming: bool,
        mut meanwhile: impl FnMut(&Machine, usize),
    ) -> Result<Session<CudaDevice<EmulatorDriver>>, EngineError> {
        let dev = CudaDevice::new(EmulatorDriver::new(0).in_machine(self.machine.clone()));
        let model = Model::new(Arc::new(Gguf::open(&self.small.path).unwrap()), None, 64).unwrap();
        let announce = |line: &str| SAID.with_borrow_mut(|said| said.push(line.to_owned()));
        let options = LoadOptions { streaming, wanted: 64, ram_access: COPY, announce, ..Default::default() };
        said();
        let (mut plans, mut loading) = (0, 0);
        Session::load(dev, model, &options, &mut |bytes| {
            if bytes == 0 {
                (plans, loading) = (plans + 1, 0);
                meanwhile(&self.machine, plans);
            }
            loading += bytes;
        })
    }

    #[track_caller]
    fn assert_right(&self, runner: &mut dyn Runner) {
        let found = models::logits_of_passes(runner, PASSES);
        assert!(found.iter().zip(&self.expected).all(|(f, e)| f.to_bits() == e.to_bits()), "the logits are others");
    }
}

#[test]
fn all_memory_is_used_if_nobody_takes_it() {
    let it = Setup::new();
    let mut session = it.load(true, |_, _| ()).unwrap();
    assert_eq!((session.memory().streamed_per_pass, said()), (0, vec![]));
    it.assert_right(&mut session);
}

#[test]
fn device_memory_that_is_gone_makes_another_plan() {
    // Once, and again while the second plan is carried out.
    for times in [1, 2] {
        let it = Setup::new();
        let step = (it.full - it.least) / 3;
        let take = |machine: &Machine, plans: usize| {
            if plans <= times {
                machine.leave_vram(it.full - plans as u64 * step);
            }
        };
        let mut session = it.load(true, take).unwrap();
        let memory = session.memory();
        assert!(memory.streamed_per_pass > 0 && memory.device_weights <= it.full - times as u64 * step);
        let said = said();
        assert_eq!(said.len(), times, "{said:?}");
        for line in &said {
            assert!(line.contains("not enough memory for") && line.contains("stay on the device instead of"), "{line}");
        }
        it.assert_right(&mut session);
    }
}

#[test]
fn what_does_not_fit_any_more_is_an_error_that_says_what_would() {
    let it = Setup::new();
    let error = it.load(true, |machine, _| machine.leave_vram(it.least / 2)).err().expect("it loaded").to_string();
    assert!(error.contains("this is the least, with everything streamed"), "{error}");
    // Nobody asked for streaming, so that this is no way out that is taken silently.
    let it = Setup::new();
    let error = it.load(false, |machine, _| machine.leave_vram(it.full / 2)).err().expect("it loaded").to_string();
    assert!(error.contains("not enough memory for") && error.contains("bytes and"), "{error}");
    // Somebody who takes more each time is not followed for ever.
    let it = Setup::new();
    let step = (it.full - it.least) / 16;
    let error = it.load(true, |machine, plans| machine.leave_vram(it.full - plans as u64 * step)).err();
    assert!(error.expect("it loaded").to_string().contains("not enough memory for"));
    assert_eq!(said().len(), 3);
}

/// RAM that is gone when it is to be filled: its matrices come from disk.
#[test]
fn ram_that_is_gone_is_made_up_for_by_the_disk() {
    // Enough for one buffer; for two layers, too.
    for left in [500 << 10, 1650 << 10] {
        let it = Setup::new();
        it.machine.leave_vram(it.least);
        let mut session = it.load(true, |machine, _| machine.leave_ram(left)).unwrap();
        let (memory, said) = (session.memory(), said());
        let from_ram = memory.streamed_per_pass - memory.disk_per_pass;
        assert!(memory.disk_per_pass > 0 && (from_ram > 0) == (left > 1 << 20), "{memory:?}");
        assert!(
            said[0].contains("not enough memory for layer") || said[0].contains("not enough memory for the output")
        );
        assert!(said[0].ends_with("what was to be there is read from disk in each pass, which is slower"), "{said:?}");
        assert!(said[1].starts_with("what is on disk is read by "), "{said:?}");
        it.assert_right(&mut session);
    }
    // Without any, nothing can be read from disk either.
    let it = Setup::new();
    it.machine.leave_vram(it.least);
    let error = it.load(true, |machine, _| machine.leave_ram(0)).err().expect("it loaded").to_string();
    assert!(error.contains("page-locked host memory: not enough memory for the buffers for reads"), "{error}");
}

/// RAM that is there and is not page-locked: the page cache may have it, and reads go by way of that.
#[test]
fn ram_that_cannot_be_locked_is_left_to_the_page_cache() {
    let it = Setup::new();
    it.machine.leave_vram(it.least);
    let mut session = it.load(true, |machine, _| machine.forbid_locking()).unwrap();
    let (memory, said) = (session.memory(), said());
    assert!(memory.disk_per_pass > 0 && memory.disk_per_pass == memory.streamed_per_pass, "{memory:?}");
    assert!(said[0].starts_with("some RAM could not be page-locked (emulator refuses"), "{said:?}");
    assert!(said[1].contains("through the page cache"), "{said:?}");
    it.assert_right(&mut session);
}
