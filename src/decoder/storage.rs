//! The only place that looks inside a tensor: f32 values on the CPU, read and updated in place.
//!
//! Kernels for another device would enter here.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Storage, StorageRef, Tensor, bail};

/// A contiguous f32 tensor's values.
pub(super) struct View<'a> {
    storage: StorageRef<'a>,
    span: Range<usize>,
}

impl<'a> View<'a> {
    pub(super) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let span = contiguous(layout)?;
        Ok(Self { storage, span })
    }

    pub(super) fn values(&self) -> Result<&[f32]> {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => Ok(values.get(self.span.clone()).unwrap_or_default()),
            _ => bail!("expected f32 values on the CPU"),
        }
    }
}

/// Changes a contiguous f32 tensor's values in place and hands on what `change` returns.
///
/// The caller holds the only tensor on that storage.
pub(super) fn update<R>(tensor: &Tensor, change: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    let op = Update { change: RefCell::new(Some(change)), result: RefCell::new(None) };
    tensor.inplace_op1(&op)?;
    match op.result.into_inner() {
        Some(result) => Ok(result),
        None => bail!("an update in place did not run"),
    }
}

struct Update<F, R> {
    change: RefCell<Option<F>>,
    result: RefCell<Option<R>>,
}

impl<R, F: FnOnce(&mut [f32]) -> R> InplaceOp1 for Update<F, R> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let span = contiguous(layout)?;
        let (CpuStorage::F32(values), Some(change)) = (storage, self.change.take()) else {
            bail!("expected f32 values")
        };
        self.result.replace(Some(change(values.get_mut(span).unwrap_or_default())));
        Ok(())
    }
}

fn contiguous(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("expected a contiguous tensor, found strides {:?}", layout.stride()),
    }
}

/// A matrix of f32 from its rows.
pub(super) fn matrix(values: Vec<f32>, width: usize) -> Result<Tensor> {
    let rows = values.len() / width.max(1);
    Tensor::from_vec(values, (rows, width), &Device::Cpu)
}
