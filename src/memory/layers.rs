//! The pieces of which frozen RAM consists when several files have its content, as plain numbers.
//!
//! Each layer adds a file with the pages that were written since the last. Since every piece is a mapping of
//! each machine, and every file an open one, a layer also takes over pages of others as soon as there would
//! be too many.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use super::frozen::Parts;

/// A part of a region with content.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    /// In bytes from the start of the region, in whole pages.
    pub range: Range<u64>,
    pub file: Arc<File>,
}

/// Returns the pieces that show `runs` of `file`, and elsewhere what `pieces` show.
pub(super) fn lay_over(pieces: &[Piece], runs: &[Range<u64>], file: &Arc<File>) -> Vec<Piece> {
    let mut result = Vec::with_capacity(pieces.len() + 2 * runs.len());
    let mut add = |range: Range<u64>, file: &Arc<File>| match result.last_mut() {
        _ if range.is_empty() => {}
        Some(Piece { range: last, file: of }) if last.end == range.start && Arc::ptr_eq(of, file) => {
            last.end = range.end;
        }
        _ => result.push(Piece { range, file: file.clone() }),
    };
    let mut rest = pieces.iter().cloned().peekable();
    // Adds what the pieces show before `end`.
    let mut add_below = |add: &mut dyn FnMut(Range<u64>, &Arc<File>), from: u64, end: u64| {
        while let Some(piece) = rest.peek_mut() {
            let start = piece.range.start.max(from);
            if start >= end {
                break;
            }
            add(start..piece.range.end.min(end).max(start), &piece.file);
            if piece.range.end > end {
                piece.range.start = end;
                break;
            }
            rest.next();
        }
    };
    let mut from = 0;
    for run in runs {
        add_below(&mut add, from, run.start);
        add(run.clone(), file);
        from = run.end;
    }
    add_below(&mut add, from, u64::MAX);
    result
}

/// Returns the ranges that the next layer of a region of `bytes` bytes takes, in order: at least `dirty`. The
/// region then has at most `room` mappings, if that is 4 or more.
pub(super) fn ranges_to_copy(
    bytes: u64,
    pieces: &[Piece],
    dirty: &[Range<u64>],
    room: usize,
) -> Vec<Range<u64>> {
    if pieces.is_empty() {
        let mut parts = Parts::new(bytes);
        for range in dirty {
            parts.add(range.clone());
        }
        return parts.finish();
    }
    let mut runs = joined(dirty.iter().cloned(), GAP);
    let mut block = SMALLEST_BLOCK;
    while mappings(bytes, pieces, &runs) > room {
        let blocks = crowded_blocks(bytes, pieces, &runs, block);
        let mut all = [runs, blocks].concat();
        all.sort_by_key(|range| range.start);
        runs = joined(all.into_iter(), 0);
        if block >= bytes {
            break;
        }
        block *= 4;
    }
    runs
}

/// Returns the bytes of `regions` that each of `files` shows, and with them the files that the next layer has
/// to replace, so that there are at most `most`: those that show least.
pub(super) fn files_to_replace(pieces: &[&[Piece]], files: &[Arc<File>], most: usize) -> Vec<Arc<File>> {
    if files.len() < most {
        return Vec::new();
    }
    let shown = |file: &Arc<File>| -> u64 {
        let of_file = pieces.iter().copied().flatten().filter(|piece| Arc::ptr_eq(&piece.file, file));
        of_file.map(|piece| piece.range.end - piece.range.start).sum()
    };
    let mut files: Vec<(u64, &Arc<File>)> = files.iter().map(|file| (shown(file), file)).collect();
    files.sort_by_key(|(shown, _)| *shown);
    files.into_iter().take(most / 2).map(|(_, file)| file.clone()).collect()
}

/// Returns the union of `dirty` and of the pieces of `files`, in order.
pub(super) fn with_pieces_of(
    dirty: Vec<Range<u64>>,
    pieces: &[Piece],
    files: &[Arc<File>],
) -> Vec<Range<u64>> {
    if files.is_empty() {
        return dirty;
    }
    let is_one = |piece: &&Piece| files.iter().any(|file| Arc::ptr_eq(&piece.file, file));
    let mut all = dirty;
    all.extend(pieces.iter().filter(is_one).map(|piece| piece.range.clone()));
    all.sort_by_key(|range| range.start);
    joined(all.into_iter(), 0)
}

/// Joins ranges that overlap, or between which there are at most `gap` bytes.
fn joined(ranges: impl Iterator<Item = Range<u64>>, gap: u64) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end + gap => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Returns where the mappings of a region begin, apart from the first: pieces, `runs` over them, and what is
/// between. They are in order.
fn borders(bytes: u64, pieces: &[Piece], runs: &[Range<u64>]) -> Vec<u64> {
    let mut borders = Vec::with_capacity(2 * (pieces.len() + runs.len()));
    let mut runs_after = runs.iter().peekable();
    for piece in pieces {
        for at in [piece.range.start, piece.range.end] {
            while runs_after.next_if(|run| run.end < at).is_some() {}
            // A border that a run covers is none any more.
            if runs_after.peek().is_none_or(|run| at < run.start) {
                borders.push(at);
            }
        }
    }
    borders.extend(runs.iter().flat_map(|run| [run.start, run.end]));
    borders.sort_unstable();
    borders.dedup();
    borders.retain(|at| *at != 0 && *at != bytes);
    borders
}

/// Returns the number of mappings of a region once `runs` lie over its pieces.
fn mappings(bytes: u64, pieces: &[Piece], runs: &[Range<u64>]) -> usize {
    borders(bytes, pieces, runs).len() + 1
}

/// Returns the blocks of `block` bytes in which there are so many mappings that a single one is better.
fn crowded_blocks(bytes: u64, pieces: &[Piece], runs: &[Range<u64>], block: u64) -> Vec<Range<u64>> {
    let borders = borders(bytes, pieces, runs);
    let in_blocks = borders.chunk_by(|one, other| one / block == other / block);
    let crowded = in_blocks.filter(|borders| borders.len() >= CROWD).filter_map(|borders| borders.first());
    crowded.map(|at| at / block * block..(at / block * block + block).min(bytes)).collect()
}

/// Unwritten bytes between two ranges that are copied with them, because that takes less time than another
/// mapping.
const GAP: u64 = 4 * 4096;
const SMALLEST_BLOCK: u64 = 64 << 10;
/// The fewest borders in a block that is copied whole, which has two at most.
const CROWD: usize = 3;
