//! The source by itself: pieces, buffers, and its end.

use std::{sync::Arc, time::Duration};

use ::nvme::model::{Fault, ModelDoor, Traits};
use ntransformer::{gguf::Gguf, stream::Reads};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use readahead::{Dst, HostBuf, Input, Options, Piece, ReadAhead};

use super::{holding, reads};
use crate::placement::Small;

fn inputs(gguf: &Gguf) -> Vec<Input> {
    let input = |part: &Arc<ntransformer::gguf::Part>| Input {
        path: part.path().unwrap().to_owned(),
        file: part.file().unwrap().try_clone().unwrap(),
    };
    gguf.parts().iter().map(input).collect()
}

/// Pieces that begin and end anywhere, into buffers that the drive sees and such that it does not.
#[test]
fn any_piece_is_read() {
    let small = Small::of("Q8_0");
    let gguf = Gguf::open(&small.path).unwrap();
    let bytes = gguf.parts()[0].bytes();
    let mut rng = SmallRng::seed_from_u64(1);
    let mut pieces: Vec<Piece> = (0..200)
        .map(|_| {
            let offset = rng.random_range(0..bytes.len());
            let len = rng.random_range(1..=(bytes.len() - offset).min(300_000));
            Piece { file: 0, offset: offset as u64, len }
        })
        .collect();
    pieces.push(Piece { file: 0, offset: bytes.len() as u64 - 1, len: 1 });
    for (block, iommu) in [(512, true), (512, false), (4096, true), (4096, false)] {
        let traits = Traits { shuffle: Some(9), pages: [0, 1], ..Traits::default() };
        let door = ModelDoor::new(traits, vec![holding(&gguf, block, 1, false)]);
        if !iommu {
            door.without_iommu();
        }
        let mut source = reads(&door, 1).ahead(inputs(&gguf), false).unwrap();
        let room = source.room(300_000);
        let buffers: Vec<HostBuf> = (0..5).map(|_| HostBuf::allocate(room, source.block())).collect();
        let memory: Vec<_> = buffers.iter().map(|buffer| (buffer.as_ptr(), buffer.owner())).collect();
        // What lies around a piece in its blocks is written, and nothing behind them.
        source.prepare(&buffers);
        let describes = if iommu {
            ", straight into the buffers"
        } else {
            " of the driver's own, since the drive cannot write the buffers ("
        };
        assert!(source.describe().contains(describes), "{}", source.describe());
        let ahead =
            ReadAhead::start(source, pieces.clone(), buffers, Options { once: true, ..Options::default() }).unwrap();
        for (number, piece) in pieces.iter().enumerate() {
            let filled = ahead.take(number).unwrap();
            let (ptr, _owner) = &memory[filled.buffer.index()];
            // SAFETY: the owner keeps the memory, and no read has it before it is given back.
            let found = unsafe { std::slice::from_raw_parts(ptr.add(filled.begin), filled.len) };
            assert!(found == &bytes[piece.offset as usize..][..piece.len], "{piece:?}");
            ahead.give_back(filled.buffer);
        }
    }
}

/// Behind the end of a source nothing is written, and its drive is at rest.
#[test]
fn a_source_that_is_dropped_in_mid_flight_leaves_memory_alone() {
    let small = Small::of("Q8_0");
    let gguf = Gguf::open(&small.path).unwrap();
    for late in [0, 20] {
        let door = ModelDoor::new(Traits::default(), vec![holding(&gguf, 512, 0, false)]);
        let reads = reads(&door, 0);
        let mut source = reads.ahead(inputs(&gguf), false).unwrap();
        door.model().faults(Box::new(move |_, _| Some(Fault::Late(late))));
        let mut buffers: Vec<HostBuf> = (0..4).map(|_| HostBuf::allocate(1 << 18, 4096)).collect();
        source.prepare(&buffers);
        let memory: Vec<_> = buffers.iter().map(|buffer| (buffer.as_ptr(), buffer.owner())).collect();
        for (id, buffer) in buffers.drain(..).enumerate() {
            let piece = Piece { file: 0, offset: 1 << 18 << id, len: 1 << 18 };
            source.submit(id as u64, &piece, Dst::Host(buffer)).unwrap();
        }
        let mut done = Vec::new();
        source.wait(Duration::from_micros(1), &mut done).unwrap();
        drop(source);
        // SAFETY: the owners keep the memory, which no read has any more.
        let bytes = || memory.iter().map(|(ptr, _)| unsafe { std::slice::from_raw_parts(*ptr, 1 << 18) }.to_vec());
        let before: Vec<_> = bytes().collect();
        (0..1000).for_each(|_| {
            door.model().step();
        });
        assert!(bytes().eq(before), "something was written");
        assert_eq!(door.bus().misses(), 0);
        // Another one begins anew.
        door.model().faults(Box::new(|_, _| None));
        let mut source = reads.ahead(inputs(&gguf), false).unwrap();
        source.submit(1, &Piece { file: 0, offset: 0, len: 10 }, Dst::Host(HostBuf::allocate(4096, 4096))).unwrap();
        let mut done = Vec::new();
        while done.is_empty() {
            source.wait(Duration::from_secs(1), &mut done).unwrap();
        }
        assert!(done[0].result.is_ok(), "{done:?}");
    }
}
