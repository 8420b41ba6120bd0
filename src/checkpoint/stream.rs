//! Reading whole tensors: piece by piece, two checkpoints side by side, several tensors at a time.

use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::{Checkpoint, CheckpointError, Progress, TensorInfo};

/// Bytes read at a time when a tensor is streamed.
const CHUNK: u64 = 1 << 20;
/// The most threads that read and hash: beyond these, memory is what limits.
const MAX_THREADS: usize = 8;

impl Checkpoint {
    /// Passes a tensor's bytes to `visit` in order, piece by piece with the piece's offset; pieces hold whole elements.
    pub fn stream(
        &self,
        tensor: &TensorInfo,
        progress: &dyn Progress,
        mut visit: impl FnMut(u64, &mut [u8]),
    ) -> Result<(), CheckpointError> {
        let mut buffer = vec![0; CHUNK.min(tensor.length) as usize];
        each_piece(tensor.length, |offset, length| {
            let piece = buffer.get_mut(..length).unwrap_or_default();
            self.read_at(tensor, offset, piece)?;
            visit(offset, piece);
            progress.advance(length as u64);
            Ok(())
        })
    }

    /// The same for one tensor of two checkpoints, which must have one length; reports the bytes of one of them.
    ///
    /// # Errors
    /// Either cannot be read, or `other` is shorter.
    pub fn stream_beside(
        &self,
        tensor: &TensorInfo,
        other: (&Self, &TensorInfo),
        progress: &dyn Progress,
        mut visit: impl FnMut(u64, &mut [u8], &mut [u8]),
    ) -> Result<(), CheckpointError> {
        let size = CHUNK.min(tensor.length) as usize;
        let (mut ours, mut theirs) = (vec![0; size], vec![0; size]);
        each_piece(tensor.length, |offset, length| {
            let ours = ours.get_mut(..length).unwrap_or_default();
            let theirs = theirs.get_mut(..length).unwrap_or_default();
            self.read_at(tensor, offset, ours)?;
            other.0.read_at(other.1, offset, theirs)?;
            visit(offset, ours, theirs);
            progress.advance(length as u64);
            Ok(())
        })
    }
}

fn each_piece(
    length: u64,
    mut visit: impl FnMut(u64, usize) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let mut offset = 0;
    while offset < length {
        let piece = CHUNK.min(length - offset);
        visit(offset, piece as usize)?;
        offset += piece;
    }
    Ok(())
}

/// Does `work` to every item, on as many threads as the machine has processors; results in the order of the items.
///
/// # Errors
/// That of the first item, in their order, that failed; later ones may not have been tried.
pub fn in_parallel<T: Sync, R: Send, E: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS).min(items.len());
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
    let done = Mutex::new(Vec::with_capacity(items.len()));
    let run = || {
        while let Some((index, item)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            // Whatever comes before a failure is still done, so that the same item is always the one reported.
            items.get(index).filter(|_| index < failed.load(Ordering::Relaxed)).map(|item| (index, item))
        } {
            let result = work(item);
            if result.is_err() {
                failed.fetch_min(index, Ordering::Relaxed);
            }
            done.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((index, result));
        }
    };
    thread::scope(|scope| {
        // The last thread is this one.
        (1..threads).for_each(|_| drop(scope.spawn(run)));
        run();
    });
    let mut done = done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_and_the_first_failure_is_told() {
        let items: Vec<u32> = (0..1000).collect();
        let squares = in_parallel(&items, |item| Ok::<_, ()>(u64::from(*item).pow(2)));
        assert_eq!(squares, Ok(items.iter().map(|item| u64::from(*item).pow(2)).collect()));
        for _ in 0..20 {
            let odd = in_parallel(&items, |item| if *item >= 300 && item % 7 == 3 { Err(*item) } else { Ok(()) });
            assert_eq!(odd, Err(304));
        }
        assert_eq!(in_parallel(&[], |_: &u8| Err::<(), _>(())), Ok(vec![]));
    }
}
