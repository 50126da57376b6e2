//! The door through VFIO (Documentation/driver-api/vfio.rst in Linux): vfio-pci is bound to the device, and an IOMMU lets it reach the
//! memory that it was given, and nothing else.
//!
//! Where the kernel has VFIO without an IOMMU (`enable_unsafe_noiommu_mode`), registers come from VFIO and memory is as in
//! [`unbound`](crate::unbound). That mode was not tried: Debian's kernel does not have it.

use crate::{
    BusAddr, BusMemory, DmaBuf, Door, Error, PciAddress, Registers, System,
    hugepage::{Anonymous, PAGE},
    iova::IovaSpace,
    pci::{Bar, set_bus_master},
    registers::DOORBELLS,
    unbound::{PhysicalMemory, config_error},
};
use std::{
    any::Any,
    ffi::CString,
    fs::{File, OpenOptions},
    io,
    os::fd::{AsRawFd, FromRawFd},
    path::{Path, PathBuf},
    ptr::NonNull,
    sync::{Arc, Mutex},
};
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_GROUP_FLAGS_VIABLE, VFIO_IOMMU_INFO_CAPS,
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_NOIOMMU_IOMMU, VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_REGION_INFO_FLAG_MMAP, VFIO_TYPE1v2_IOMMU, vfio_group_status, vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap, vfio_region_info,
};

/// An ioctl of VFIO: linux/vfio.h has `_IO(';', 100 + n)`, which names neither direction nor size.
const fn request(n: u64) -> u64 {
    (b';' as u64) << 8 | (100 + n)
}

const GET_API_VERSION: u64 = request(0);
const CHECK_EXTENSION: u64 = request(1);
const SET_IOMMU: u64 = request(2);
const GROUP_GET_STATUS: u64 = request(3);
const GROUP_SET_CONTAINER: u64 = request(4);
const GROUP_GET_DEVICE_FD: u64 = request(6);
const DEVICE_GET_REGION_INFO: u64 = request(8);
const IOMMU_GET_INFO: u64 = request(12);
const IOMMU_MAP_DMA: u64 = request(13);
const IOMMU_UNMAP_DMA: u64 = request(14);

/// A device that vfio-pci is bound to.
pub struct VfioDoor {
    name: String,
    bar: Bar,
    /// The device. Its configuration space is at `config`.
    device: File,
    config: u64,
    memory: Memory,
    /// Behind the device, since the kernel wants it so.
    _group: File,
}

enum Memory {
    Iommu(Arc<Container>),
    None(PhysicalMemory),
}

impl VfioDoor {
    /// Opens the device at `address`.
    ///
    /// # Errors
    /// If vfio-pci is not bound to it, or another device of its group has a driver, or this user may not.
    pub fn open(system: &System, address: PciAddress) -> Result<Arc<dyn Door>, Error> {
        let found = system.device(address)?;
        let refuse = |reason: String| Error::Refused { device: address.to_string(), reason };
        let group =
            found.group.as_ref().ok_or_else(|| refuse("it has no IOMMU group, so VFIO has no way to it".into()))?;
        let paths =
            [("", false), ("noiommu-", true)].map(|(prefix, none)| (format!("/dev/vfio/{prefix}{}", group.id), none));
        let (path, without) = paths.into_iter().find(|(path, _)| Path::new(path).exists()).ok_or_else(|| {
            refuse(format!("/dev/vfio/{} does not exist; bind vfio-pci to it (ntransformer nvme bind)", group.id))
        })?;
        let container = open("/dev/vfio/vfio")?;
        let group = open(&path)?;
        if value(&container, GET_API_VERSION, 0).ok() != Some(VFIO_API_VERSION as i32) {
            return Err(refuse("the kernel has another version of VFIO".into()));
        }
        let mut status = vfio_group_status { argsz: size_of::<vfio_group_status>() as u32, flags: 0 };
        call(&group, GROUP_GET_STATUS, &mut status).map_err(system_error("looking at the IOMMU group"))?;
        if status.flags & VFIO_GROUP_FLAGS_VIABLE == 0 {
            let others = system.neighbours(address).join(", ");
            return Err(refuse(format!("other devices of its IOMMU group have drivers: {others}")));
        }
        let mut fd = container.as_raw_fd();
        call(&group, GROUP_SET_CONTAINER, &mut fd).map_err(system_error("giving the IOMMU group a container"))?;
        let kind = if without { VFIO_NOIOMMU_IOMMU } else { VFIO_TYPE1v2_IOMMU };
        if value(&container, CHECK_EXTENSION, kind).ok() != Some(1) {
            return Err(refuse("the kernel has no VFIO for this IOMMU; load the module vfio_iommu_type1".into()));
        }
        value(&container, SET_IOMMU, kind).map_err(system_error("setting the IOMMU up"))?;
        let device = device(&group, address)?;
        let registers = region(&device, VFIO_PCI_BAR0_REGION_INDEX)?;
        let config = region(&device, VFIO_PCI_CONFIG_REGION_INDEX)?;
        if registers.flags & VFIO_REGION_INFO_FLAG_MMAP == 0 || registers.size < DOORBELLS as u64 {
            return Err(refuse(format!("BAR0 of {} bytes cannot be mapped as an NVMe controller's", registers.size)));
        }
        let memory = match without {
            true => Memory::None(PhysicalMemory::new()?),
            false => Memory::Iommu(Arc::new(Container::new(container)?)),
        };
        Ok(Arc::new(VfioDoor {
            name: address.to_string(),
            bar: Bar::map(&device, registers.offset, registers.size as usize)?,
            device,
            config: config.offset,
            memory,
            _group: group,
        }))
    }
}

impl Registers for VfioDoor {
    fn bytes(&self) -> usize {
        self.bar.bytes()
    }

    fn read32(&self, offset: usize) -> u32 {
        self.bar.read32(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.bar.write32(offset, value);
    }
}

impl Door for VfioDoor {
    fn name(&self) -> &str {
        &self.name
    }

    fn describe(&self) -> String {
        match self.memory {
            Memory::Iommu(_) => "VFIO, through the IOMMU".into(),
            Memory::None(_) => "VFIO without an IOMMU; physical addresses of huge pages".into(),
        }
    }

    fn check(&self) -> Result<(), Error> {
        // As long as it is open, vfio-pci is not unbound.
        Ok(())
    }

    fn allocate(&self, len: usize) -> Result<DmaBuf, Error> {
        match &self.memory {
            Memory::None(memory) => memory.allocate(len),
            Memory::Iommu(_) => {
                let memory = Anonymous::any(len)?;
                let (ptr, len) = (memory.ptr, memory.len);
                // SAFETY: new memory, which goes with its owner.
                let bus = unsafe { self.map(ptr, len, Box::new(memory))? };
                // SAFETY: as above; the memory is aligned to a page.
                Ok(unsafe { DmaBuf::new(ptr, bus) })
            }
        }
    }

    unsafe fn map(&self, ptr: NonNull<u8>, len: usize, owner: Box<dyn Any + Send + Sync>) -> Result<BusMemory, Error> {
        match &self.memory {
            // SAFETY: the caller promises what is asked for here.
            Memory::None(memory) => unsafe { memory.map(ptr, len, owner) },
            Memory::Iommu(container) => {
                let len = len.next_multiple_of(PAGE);
                let iova = container.map(ptr, len)?;
                let owner = Mapped { container: container.clone(), iova, len, _owner: owner };
                // SAFETY: the addresses were not in use, and lead to this memory until the owner unmaps it.
                unsafe { BusMemory::new([(BusAddr(iova), len)], Box::new(owner)) }
            }
        }
    }

    fn holds(&self) -> bool {
        matches!(self.memory, Memory::Iommu(_))
    }

    fn set_bus_master(&self, on: bool) -> Result<(), Error> {
        set_bus_master(&self.device, self.config, on).map_err(|cause| config_error(&self.name, cause))
    }
}

/// An IOMMU's address space.
struct Container {
    file: File,
    space: Mutex<IovaSpace>,
}

impl Container {
    fn new(file: File) -> Result<Container, Error> {
        let space = Mutex::new(IovaSpace::new(iova_ranges(&file)?));
        Ok(Container { file, space })
    }

    fn space(&self) -> std::sync::MutexGuard<'_, IovaSpace> {
        self.space.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn map(&self, ptr: NonNull<u8>, len: usize) -> Result<u64, Error> {
        let iova = self.space().take(len as u64).ok_or(Error::BusRange { bus: 0, len })?;
        let mut map = vfio_iommu_type1_dma_map {
            argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
            flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            vaddr: ptr.as_ptr() as u64,
            iova,
            size: len as u64,
        };
        call(&self.file, IOMMU_MAP_DMA, &mut map).map_err(|cause| {
            self.space().give_back(iova);
            let advice = "; memory for devices is locked: raise the limit (ulimit -l unlimited), or start as root";
            Error::System { what: "mapping memory for the device", cause, advice }
        })?;
        Ok(iova)
    }
}

/// Memory that the device reaches. When it is dropped, it does no longer.
struct Mapped {
    container: Arc<Container>,
    iova: u64,
    len: usize,
    _owner: Box<dyn Any + Send + Sync>,
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let (argsz, size) = (size_of::<vfio_iommu_type1_dma_unmap>() as u32, self.len as u64);
        let mut unmap = vfio_iommu_type1_dma_unmap { argsz, flags: 0, iova: self.iova, size, ..Default::default() };
        // Where the device was closed before, its address space is gone, and that is an error that means nothing.
        let _ = call(&self.container.file, IOMMU_UNMAP_DMA, &mut unmap);
        self.container.space().give_back(self.iova);
    }
}

fn open(path: &str) -> Result<File, Error> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|cause| Error::Io { path: PathBuf::from(path), what: "opening", cause })
}

fn system_error(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |cause| Error::System { what, cause, advice: "" }
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// An ioctl with a number.
fn value(file: &File, request: u64, number: u32) -> io::Result<i32> {
    // SAFETY: these requests of VFIO take a number and touch no memory.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), request, u64::from(number)) })
}

/// An ioctl with a structure, which says how large it is in its first field where sizes may differ.
fn call<T>(file: &File, request: u64, argument: &mut T) -> io::Result<i32> {
    // SAFETY: the request takes this structure, and the kernel writes no more of it than `argsz`.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_mut(argument)) })
}

fn device(group: &File, address: PciAddress) -> Result<File, Error> {
    let name = CString::new(address.to_string()).expect("an address has no zeros");
    // SAFETY: the request takes a C string.
    let fd = checked(unsafe { libc::ioctl(group.as_raw_fd(), GROUP_GET_DEVICE_FD, name.as_ptr()) });
    let fd = fd.map_err(system_error("opening the device by VFIO"))?;
    // SAFETY: a new descriptor that is nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn region(device: &File, index: u32) -> Result<vfio_region_info, Error> {
    let mut info = vfio_region_info { argsz: size_of::<vfio_region_info>() as u32, index, ..Default::default() };
    call(device, DEVICE_GET_REGION_INFO, &mut info).map_err(system_error("asking for the device's regions"))?;
    Ok(info)
}

/// The ranges of addresses that the IOMMU translates, first and last: the capability of `vfio_iommu_type1_info` that tells of them.
fn iova_ranges(container: &File) -> Result<Vec<(u64, u64)>, Error> {
    let mut info = [0u32; 1024];
    info[0] = size_of_val(&info) as u32;
    call(container, IOMMU_GET_INFO, &mut info).map_err(system_error("asking for the IOMMU's addresses"))?;
    // argsz, flags, iova_pgsizes (64 bits), cap_offset.
    let (flags, first) = (info[1], info[4]);
    let mut at = if flags & VFIO_IOMMU_INFO_CAPS == 0 { 0 } else { first as usize / 4 };
    while at > 0 && at + 4 < info.len() {
        // id and version, next; then nr_iovas, reserved, and pairs.
        if info[at] & 0xffff == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE {
            let words = &info[at + 4..];
            let count = (info[at + 2] as usize).min(words.len() / 4);
            let wide = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
            return Ok(words.as_chunks::<4>().0[..count]
                .iter()
                .map(|w| (wide(w[0], w[1]), wide(w[2], w[3])))
                .collect());
        }
        at = info[at + 1] as usize / 4;
    }
    // Kernels before 5.4 do not say. All of them translate what 32 bits can name, but for the window of message interrupts.
    Ok(vec![(0, 0xfedf_ffff)])
}
