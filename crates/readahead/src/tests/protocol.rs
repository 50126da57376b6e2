//! The protocol alone, step by step, with a clock of its own.

use crate::{
    Landed, Options, Piece, ReadError, SourceError,
    protocol::{Protocol, Read, Step},
};
use std::{
    io,
    time::{Duration, Instant},
};

const STALL: Duration = Duration::from_secs(30);

fn protocol(pieces: usize, buffers: usize) -> Protocol {
    let pieces = (0..pieces).map(|index| Piece { file: 0, offset: 100 * index as u64, len: 100 }).collect();
    Protocol::new(
        pieces,
        [(0, "model.gguf".to_owned())].into(),
        buffers,
        16,
        Options { retries: 3, stall: STALL, once: false },
    )
}

fn reads(protocol: &mut Protocol, now: Instant) -> Vec<Read> {
    match protocol.next(now) {
        Step::Read(reads) => reads,
        step => panic!("{step:?}"),
    }
}

fn whole() -> Result<Landed, SourceError> {
    Ok(Landed { begin: 7, len: 100 })
}

#[test]
fn pieces_come_in_order_whatever_the_order_of_completions() {
    let (mut it, now) = (protocol(2, 3), Instant::now());
    let first = reads(&mut it, now);
    assert_eq!(first.iter().map(|read| read.piece.offset).collect::<Vec<_>>(), [0, 100, 0], "the cycle goes round");
    for read in first.iter().rev() {
        assert_eq!(it.take(0, now).unwrap(), None);
        it.completed(read.id, whole(), now);
    }
    assert!(matches!(it.next(now), Step::Sleep), "all buffers are full");
    for piece in [0, 1, 0] {
        let filled = it.take(piece, now).unwrap().unwrap();
        assert_eq!((filled.piece, filled.begin, filled.len), (piece, 7, 100));
    }
    assert!(matches!(it.take(1, now), Err(ReadError::AllTaken { buffers: 3 })));
    let error = it.take(0, now).unwrap_err();
    assert_eq!(error.to_string(), "piece 0 was asked for, but piece 1 is next: seek first");
    assert_eq!(it.spans().len(), 3);
}

#[test]
fn a_read_is_tried_again_and_then_fails_until_a_seek() {
    let (mut it, now) = (protocol(3, 1), Instant::now());
    for attempt in 1..=4 {
        let read = reads(&mut it, now)[0];
        assert_eq!(read.piece.offset, 0);
        assert_eq!(it.take(0, now).unwrap(), None, "attempt {attempt}");
        let result = match attempt % 2 {
            0 => Err(io::Error::other("no").into()),
            _ => Ok(Landed { begin: 0, len: 99 }),
        };
        it.completed(read.id, result, now);
    }
    for _ in 0..2 {
        assert!(matches!(it.next(now), Step::Sleep));
        let error = it.take(0, now).unwrap_err().to_string();
        assert_eq!(error, "model.gguf: reading 100 bytes at offset 0 failed (attempt 4): no");
    }
    it.seek(1);
    let read = reads(&mut it, now)[0];
    assert_eq!(read.piece.offset, 100);
    it.completed(read.id, whole(), now);
    assert_eq!(it.take(1, now).unwrap().unwrap().piece, 1);
}

#[test]
fn what_cannot_get_better_is_not_tried_again() {
    let (mut it, now) = (protocol(3, 1), Instant::now());
    let read = reads(&mut it, now)[0];
    it.completed(read.id, Err(SourceError::Truncated { was: 1000, is: 50 }), now);
    let error = it.take(0, now).unwrap_err().to_string();
    assert!(error.contains("(attempt 1)") && error.contains("from 1000 to 50 bytes"), "{error}");
}

#[test]
fn pieces_before_one_that_failed_are_delivered() {
    let (mut it, now) = (protocol(3, 3), Instant::now());
    let read = reads(&mut it, now);
    it.completed(read[1].id, Err(SourceError::Changed), now);
    it.completed(read[0].id, Err(io::Error::other("once").into()), now);
    let again = reads(&mut it, now);
    assert_eq!((again.len(), again[0].piece.offset), (1, 0), "nothing new is read behind a failure");
    it.completed(again[0].id, whole(), now);
    assert!(it.take(0, now).unwrap().is_some());
    assert!(matches!(it.take(1, now), Err(ReadError::Failed { .. })));
}

#[test]
fn a_stalled_read_keeps_its_buffer() {
    let (mut it, now) = (protocol(3, 2), Instant::now());
    let first = reads(&mut it, now);
    it.completed(first[1].id, whole(), now);
    let late = now + STALL;
    let error = it.take(0, late).unwrap_err().to_string();
    assert!(error.starts_with("model.gguf: reading 100 bytes at offset 0 has not come back for 30 s"), "{error}");
    it.seek(0);
    let second = reads(&mut it, late);
    assert_eq!((second.len(), second[0].buffer), (1, first[1].buffer), "the other buffer is not there");
    it.completed(first[0].id, whole(), late);
    assert_eq!(it.take(0, late).unwrap(), None, "what came late is not handed out");
    it.completed(second[0].id, whole(), late);
    assert_eq!(it.take(0, late).unwrap().unwrap().buffer.index(), first[1].buffer);
}

#[test]
fn when_all_buffers_are_in_stalled_reads_that_is_the_error() {
    let (mut it, now) = (protocol(3, 1), Instant::now());
    let read = reads(&mut it, now)[0];
    it.seek(1);
    assert_eq!(it.take(1, now).unwrap(), None, "it may still come back");
    assert!(matches!(it.take(1, now + STALL), Err(ReadError::Stalled { offset: 0, .. })));
    it.completed(read.id, whole(), now + STALL);
    assert_eq!(reads(&mut it, now + STALL)[0].piece.offset, 100);
}

#[test]
fn completions_that_nobody_waits_for_change_nothing() {
    let (mut it, now) = (protocol(3, 1), Instant::now());
    let read = reads(&mut it, now)[0];
    it.completed(read.id + 1, whole(), now);
    assert_eq!(it.take(0, now).unwrap(), None);
    it.completed(read.id, whole(), now);
    it.completed(read.id, Err(io::Error::other("twice").into()), now);
    assert!(it.take(0, now).unwrap().is_some());
}

#[test]
fn a_broken_source_is_asked_again_after_a_seek_only() {
    let (mut it, now) = (protocol(3, 2), Instant::now());
    reads(&mut it, now);
    assert!(matches!(it.next(now), Step::Wait));
    it.broke(io::Error::other("gone").into());
    assert!(matches!(it.next(now), Step::Sleep));
    assert!(matches!(it.take(0, now), Err(ReadError::Failed { offset: 0, .. })));
    it.seek(0);
    assert!(matches!(it.next(now), Step::Wait), "its reads are still in flight");
    it.stop();
    assert!(matches!(it.next(now), Step::Wait));
}
