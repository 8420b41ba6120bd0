//! A forward pass that goes through the network once, however many batches there are.

use candle_core::Tensor;

use super::attention::Spans;
use super::batch::Batch;
use super::layer::Pass;
use super::rope::RopeTable;
use super::storage::View;
use super::{Decoder, DecoderError, Projection, all_rows};

/// Batches on their way through the network: all of them pass a layer before any enters the next, so that the weights of
/// one layer are in use at a time. Memory: `tokens * hidden` f32.
#[derive(Debug)]
pub struct Sweep<'a> {
    decoder: &'a Decoder<'a>,
    batches: &'a [Batch],
    spans: Vec<Spans>,
    ropes: Vec<Vec<RopeTable<'a>>>,
    hidden: Vec<Tensor>,
    layer: usize,
}

impl<'a> Sweep<'a> {
    /// Batches in front of the first layer.
    ///
    /// # Errors
    /// A token outside the vocabulary, a sequence longer than the network allows.
    pub fn new(decoder: &'a Decoder<'a>, batches: &'a [Batch]) -> Result<Self, DecoderError> {
        let ropes = batches.iter().map(|batch| decoder.rope_tables(batch)).collect::<Result<_, _>>()?;
        let hidden = batches.iter().map(|batch| decoder.embed(batch)).collect::<Result<_, _>>()?;
        Ok(Self { decoder, batches, spans: batches.iter().map(all_rows).collect(), ropes, hidden, layer: 0 })
    }

    /// Takes all batches through the next layer and shows what its sites gave, `[tokens, width]` row-major, batch after
    /// batch, gate before up. Returns the layer; nothing behind the last.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn next_layer(
        &mut self,
        mut visit: impl FnMut(&Batch, Projection, &[f32]),
    ) -> Result<Option<usize>, DecoderError> {
        let Some(layer) = self.decoder.layers.get(self.layer) else { return Ok(None) };
        let last = self.layer + 1 == self.decoder.layers.len();
        let fixed = self.batches.iter().zip(&self.spans).zip(&self.ropes);
        for (((batch, spans), ropes), hidden) in fixed.zip(&mut self.hidden) {
            let pass = Pass { ropes, deltas: None };
            let (middle, _) = layer.attend(hidden, spans, pass)?;
            let mut trace = layer.trace_sites(&middle, pass)?;
            visit(batch, Projection::Gate, View::of(&trace.gate)?.values()?);
            visit(batch, Projection::Up, View::of(&trace.up)?.values()?);
            if !last {
                *hidden = layer.finish_feed(&middle, &mut trace)?;
            }
        }
        self.layer += 1;
        Ok(Some(self.layer - 1))
    }
}
