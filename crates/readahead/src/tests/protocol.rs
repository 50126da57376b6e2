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

fn in_place(pieces: usize) -> Protocol {
    protocol(pieces, 4).in_place()
}

#[test]
fn pieces_are_read_into_their_places_when_they_are_permitted() {
    let (mut it, now) = (in_place(3), Instant::now());
    assert!(matches!(it.next(now), Step::Sleep), "nothing is permitted");
    let error = it.take(0, now).unwrap_err().to_string();
    assert_eq!(error, "piece 0 was asked for before its place was free");
    it.permit();
    it.permit();
    let two = reads(&mut it, now);
    assert_eq!(two.iter().map(|read| (read.number, read.piece.offset)).collect::<Vec<_>>(), [(0, 0), (1, 100)]);
    assert!(matches!(it.next(now), Step::Wait));
    assert_eq!(it.take(0, now).unwrap(), None);
    it.completed(two[1].id, whole(), now);
    it.completed(two[0].id, whole(), now);
    assert_eq!(it.take(0, now).unwrap().unwrap().piece, 0);
    it.permit();
    it.permit();
    let cycle = reads(&mut it, now);
    assert_eq!(cycle.iter().map(|read| read.number).collect::<Vec<_>>(), [2, 0], "the cycle goes round");
    assert_eq!(it.take(1, now).unwrap().unwrap().piece, 1);
    assert_eq!(it.take(2, now).unwrap(), None);
}

#[test]
fn nothing_is_read_into_places_while_void_reads_may_write() {
    let (mut it, now) = (in_place(3), Instant::now());
    it.permit();
    it.permit();
    let old = reads(&mut it, now);
    it.completed(old[0].id, whole(), now);
    it.seek(2);
    assert!(!it.drained(now).unwrap());
    assert!(matches!(it.take(2, now), Err(ReadError::NotPermitted { piece: 2 })), "the sought one is not permitted");
    it.permit();
    assert!(matches!(it.next(now), Step::Wait), "one of before is still in flight");
    assert_eq!(it.take(2, now).unwrap(), None);
    it.completed(old[1].id, whole(), now);
    assert!(it.drained(now).unwrap());
    let new = reads(&mut it, now);
    assert_eq!(new.iter().map(|read| read.number).collect::<Vec<_>>(), [2], "and no more than was permitted since");
    it.completed(new[0].id, whole(), now);
    assert_eq!(it.take(2, now).unwrap().unwrap().piece, 2);
}

#[test]
fn retries_in_places_wait_for_void_reads_too() {
    let (mut it, now) = (in_place(3), Instant::now());
    (0..3).for_each(|_| it.permit());
    let all = reads(&mut it, now);
    // The second fails for good, so that the third is void; the first is to be tried again.
    it.completed(all[1].id, Err(SourceError::Changed), now);
    it.completed(all[0].id, Err(io::Error::other("once").into()), now);
    assert!(matches!(it.next(now), Step::Wait));
    it.completed(all[2].id, whole(), now);
    let again = reads(&mut it, now);
    assert_eq!(again.iter().map(|read| read.number).collect::<Vec<_>>(), [0]);
    it.completed(again[0].id, whole(), now);
    assert!(it.take(0, now).unwrap().is_some());
    assert!(matches!(it.take(1, now), Err(ReadError::Failed { .. })));
}

#[test]
fn a_void_read_that_does_not_come_back_is_the_error_of_who_waits_for_it() {
    let (mut it, now) = (in_place(3), Instant::now());
    it.permit();
    let old = reads(&mut it, now)[0];
    it.seek(1);
    it.permit();
    assert!(!it.drained(now).unwrap());
    let late = now + STALL;
    assert!(matches!(it.drained(late), Err(ReadError::Stalled { offset: 0, .. })));
    assert!(matches!(it.take(1, late), Err(ReadError::Stalled { offset: 0, .. })));
    it.completed(old.id, whole(), late);
    assert!(it.drained(late).unwrap());
    assert_eq!(reads(&mut it, late)[0].number, 1);
    it.broke(io::Error::other("gone").into());
    it.seek(1);
    it.broke(io::Error::other("gone").into());
    assert!(matches!(it.drained(late), Err(ReadError::Failed { .. })), "nobody knows when they come back");
}

#[test]
fn reads_that_queue_in_the_source_are_not_late() {
    let (mut it, now) = (protocol(3, 2), Instant::now());
    let two = reads(&mut it, now);
    let late = now + STALL;
    it.queued(&mut |id| id == two[1].id, late);
    assert!(it.expire(late), "the first has been read for so long");
    it.completed(two[0].id, whole(), late);
    assert!(!it.expire(late), "the second has not");
    let (mut it, now) = (protocol(3, 2), late);
    let two = reads(&mut it, now);
    it.queued(&mut |id| id == two[0].id || id == two[1].id, now + STALL / 2);
    assert!(!it.expire(now + STALL));
    assert!(it.expire(now + STALL / 2 * 3));
}
