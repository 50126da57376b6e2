//! Drives with several namespaces: the model is found on the one that holds it, or it is said why not.

use std::sync::Arc;

use ::nvme::model::{Fault, Media, ModelDoor, Traits};
use ntransformer::{engine::DeviceChoice, gguf::Gguf, stream::nvme::Spot};

use super::{MEDIA_ERROR, MIB, assert_right, at_blocks, holding, load, reads_at, resident};
use crate::placement::Small;

/// Where `door`'s model is looked for, from block 3 on.
fn at(namespace: Option<u32>) -> Spot {
    Spot { namespace, lba: 3 }
}

fn door(media: &[&Arc<Media>]) -> Arc<ModelDoor> {
    ModelDoor::new(Traits::default(), media.iter().map(|&media| media.clone()).collect())
}

fn zeros(block: usize) -> Arc<Media> {
    Arc::new(Media::new(block, vec![0; MIB]))
}

#[test]
fn the_model_is_found_on_any_namespace() {
    let small = Small::of("Q8_0");
    let gguf = Gguf::open(&small.path).unwrap();
    let expected = resident(&small.path, DeviceChoice::Cpu);
    let (plain, packed) = (holding(&gguf, 512, 3, false), holding(&gguf, 4096, 3, true));
    // Blocks of 256 bytes are none that this driver reads.
    let (other, unreadable) = (zeros(512), zeros(256));
    for (media, namespace) in [
        (&[&plain, &other][..], None),
        (&[&other, &packed], None),
        (&[&unreadable, &other, &packed, &unreadable], None),
        (&[&plain, &packed], Some(1)),
        (&[&plain, &packed], Some(2)),
    ] {
        let door = door(media);
        let mut runner = load(&small.path, DeviceChoice::Cpu, &reads_at(&door, at(namespace))).unwrap();
        assert_right(&mut *runner, &expected, &format!("{namespace:?} of {}", media.len()));
    }
}

#[test]
fn namespaces_without_it_are_told_of() {
    let small = Small::of("Q8_0");
    let gguf = Gguf::open(&small.path).unwrap();
    let refused = |media: &[&Arc<Media>], namespace| match load(
        &small.path,
        DeviceChoice::Cpu,
        &reads_at(&door(media), at(namespace)),
    ) {
        Ok(_) => panic!("it was loaded"),
        Err(error) => error.to_string(),
    };
    let path = small.path.display();
    let (model, other) = (holding(&gguf, 512, 3, true), zeros(512));
    let mut bytes = model.bytes();
    let last = bytes.len() - 2 * MIB;
    bytes[last] ^= 1;
    let changed = Arc::new(Media::new(512, bytes));
    let tiny = Arc::new(Media::new(4096, vec![0; 8192]));

    let error = refused(&[&other, &tiny, &changed, &zeros(256)], None);
    let expected = format!(
        "model: no namespace holds {path} at block 3 (namespace 1: nothing that is known; namespace 2: only 2 blocks of 4096 bytes; \
         namespace 3: another model: what is there differs from {path} within 1024 KiB from byte "
    );
    assert!(error.starts_with(&expected), "{error}");
    assert!(error.contains("; namespace 4: namespace 4 has blocks of 2^8 bytes"), "{error}");
    assert!(error.contains("`ntransformer nvme write` lays it on one"), "{error}");

    let error = refused(&[&model, &other, &model], None);
    let expected = format!(
        "model: several namespaces hold {path} at block 3 (namespace 1: this model; namespace 2: nothing that is known; namespace 3: \
         this model); say which one is meant (--nvme-namespace, or GPUNVME_NAMESPACE)"
    );
    assert_eq!(error, expected);

    // One that is named is the only one that is looked at.
    assert!(refused(&[&model, &other], Some(2)).contains("there is no model at block 3, but nothing that is known"));
    assert!(refused(&[&model, &other], Some(3)).contains("Invalid Namespace or Format"));
    assert!(refused(&[&model, &other], Some(u32::MAX)).contains("there is no namespace 4294967295"));
    assert_eq!(refused(&[], None), "model has no namespace that can be read");
    let error = refused(&[&zeros(256), &zeros(256)], None);
    assert!(
        error.starts_with("model has no namespace that can be read (namespace 1: namespace 1 has blocks"),
        "{error}"
    );
}

/// What cannot be read of one is no reason not to look at the others; a drive that is lost is.
#[test]
fn a_namespace_that_fails_hides_no_other() {
    let small = Small::of("Q8_0");
    let gguf = Gguf::open(&small.path).unwrap();
    let (model, other) = (holding(&gguf, 4096, 3, true), zeros(512));
    let door = door(&[&other, &model]);
    // Only the first has so many blocks.
    let lba = other.blocks() - 8;
    door.model().faults(at_blocks(lba..lba + 1, Fault::Status(MEDIA_ERROR)));
    let spot = Spot { namespace: None, lba };
    let Err(error) = load(&small.path, DeviceChoice::Cpu, &reads_at(&door, spot)).map(drop) else {
        panic!("it was loaded")
    };
    let error = error.to_string();
    assert!(
        error.contains("namespace 1: model: Read of 8 blocks from block ") && error.contains("namespace 2: "),
        "{error}"
    );
}
