//! Page-locked RAM: what a model takes of it, while it is loaded and behind that, is what its plan said.

use std::{path::Path, sync::Arc};

use ntransformer::{
    device::cuda::{
        CudaDevice,
        driver::Driver,
        emulator::{EmulatorDriver, Machine},
    },
    engine::{Budget, LoadOptions, Runner, Session, plan_for},
    gguf::Gguf,
    model::Model,
    stream::{
        DiskReads,
        plan::{Access, Plan, RamAccess},
    },
};

use super::{placement::Small, setup::root};

const CONTEXT: usize = 64;
const RAM: u64 = 1 << 40;

fn model(path: &Path) -> Model {
    Model::new(Arc::new(Gguf::open(path).unwrap()), None, CONTEXT).unwrap()
}

fn options() -> LoadOptions {
    LoadOptions { streaming: true, wanted: 1, ram_access: RamAccess::Only(Access::Copy), ..LoadOptions::default() }
}

/// The plan, and the page-locked RAM that was taken: by what stays, and in the meantime.
fn load(path: &Path, vram: u64, options: &LoadOptions) -> (Plan, u64, u64) {
    let machine = Machine::new(vram);
    let device = || CudaDevice::new(EmulatorDriver::new(0).in_machine(machine.clone()));
    let plan = plan_for(&mut device(), &model(path), options, &DiskReads::Auto).unwrap().plan;
    // The link has been measured when the first bytes are told of.
    let session = Session::load(device(), model(path), options, &mut |bytes| {
        if bytes == 0 {
            machine.leave_ram(RAM);
        }
    });
    let stays = session.unwrap().memory().pinned;
    (plan, stays, RAM - machine.ram() - stays)
}

/// Behind buffers that are aligned to a drive's blocks there is a little more.
const ALIGNMENT: u64 = 16 * 3 * 4096;

#[track_caller]
fn assert_as_planned(path: &Path, vram: u64, options: &LoadOptions) -> Plan {
    let (plan, stays, loading) = load(path, vram, options);
    let planned = plan.ram_bytes + plan.staging_bytes;
    assert!(stays <= planned + ALIGNMENT, "{stays} bytes stay, planned were {planned}");
    assert!(loading <= plan.loading_bytes, "loading took {loading} bytes, planned were {}", plan.loading_bytes);
    // Whole buffers, so that up to one of them may be missing.
    assert!(2 * loading >= plan.loading_bytes, "loading took {loading} bytes, planned were {}", plan.loading_bytes);
    plan
}

#[test]
fn loading_takes_what_the_plan_says() {
    let (small, tied) = (Small::of("Q8_0"), root().join("tests/data/llama-gqa-tied.gguf"));
    for path in [&small.path, &tied] {
        let full = load(path, u64::MAX, &options()).0;
        let headroom = EmulatorDriver::new(0).headroom();
        let (most, least) = (full.vram_full + headroom, full.vram_least + headroom);

        let plan = assert_as_planned(path, most, &options());
        assert!(plan.loading_bytes > 0 && plan.ram_bytes + plan.staging_bytes == 0, "{plan:?}");
        // From RAM, and from the file.
        for vram in [least, (least + most) / 2] {
            let plan = assert_as_planned(path, vram, &options());
            assert!(plan.ram_bytes > 0 && plan.staging_bytes == 0, "{plan:?}");
            let none = LoadOptions { ram_budget: Some(Budget::Bytes(0)), ..options() };
            let plan = assert_as_planned(path, vram, &none);
            assert!(plan.ram_bytes == 0 && plan.staging_bytes > 0, "{plan:?}");
        }
        // Nothing but the table of embeddings that is also the output matrix is loaded into the least.
        let plan = load(path, least, &options()).0;
        assert_eq!(plan.loading_bytes > 0, *path == tied, "{plan:?}");
    }
}
