//! The network: a decoder that can be tapped at any layer and differentiated with respect to shared deltas.
//!
//! Weights are frozen and stay in the element type of the checkpoint; everything else is f32. Sequences of a batch are
//! packed one behind the other ([`Batch`]), so there is no padding. Shared deltas are a side path ([`SharedDeltas`]):
//! `W + M U` is never formed, and no gradient of a weight is ever computed.
//!
//! Gradients are written out by hand, each beside its forward pass (`layer.rs`, `attention.rs`, `kernels.rs`), because
//! several fused operations of candle silently drop them and its matrix product computes those of frozen weights too.
//!
//! | file | content |
//! |---|---|
//! | `config`, `keys`, `names`, `rope`, `families/` | what config.json says, family by family |
//! | `weights` | checked tensors from a checkpoint |
//! | `batch`, `site`, `deltas` | what goes in and out |
//! | `cache` | sequences that grow token by token |
//! | `layer`, `attention`, `norm`, `head`, `linear` | the parts, each with its gradient |
//! | `kernels`, `storage` | arithmetic on slices; the only files that know the device |
//! | `tune` | loss and gradients of shared deltas |

mod attention;
mod batch;
mod cache;
mod config;
mod deltas;
mod error;
mod families;
mod head;
mod kernels;
mod keys;
mod layer;
mod linear;
mod names;
mod norm;
mod rope;
mod site;
mod storage;
mod tune;
mod weights;

use std::collections::BTreeSet;

pub use candle_core::Device;
use candle_core::{DType, Tensor};

pub use batch::{Batch, Example, Target};
pub use cache::Cache;
pub use config::{Activation, AttentionShape, Config, LayerKind, Norms, SiteTensor};
pub use deltas::{SharedDeltas, SiteDeltas};
pub use error::DecoderError;
pub use rope::{Rope, RopeScaling};
pub use site::{Point, Projection, Site};
pub use tune::{Gradients, Prepared};
pub use weights::Weights;

use attention::Spans;
use head::Head;
use layer::{Layer, Pass};
use linear::FrozenLinear;
use rope::RopeTable;
use storage::{View, update};
use weights::Loader;

use crate::checkpoint::Checkpoint;

/// A decoder with its weights.
#[derive(Debug)]
pub struct Decoder {
    config: Config,
    embedding: Tensor,
    layers: Vec<Layer>,
    head: Head,
    trace_bytes: usize,
}

impl Decoder {
    /// The network of a checkpoint.
    ///
    /// # Errors
    /// As [`Config::from_json`] and [`Self::load`].
    pub fn from_checkpoint(checkpoint: &Checkpoint, device: &Device) -> Result<Self, DecoderError> {
        Self::load(Config::from_checkpoint(checkpoint)?, checkpoint, device)
    }

    /// Reads all weights from anywhere.
    ///
    /// # Errors
    /// A tensor is missing, of another shape or type than config.json says, not finite, or not part of the network.
    pub fn load(config: Config, weights: &dyn Weights, device: &Device) -> Result<Self, DecoderError> {
        if !device.is_cpu() {
            return Err(DecoderError::Device { found: format!("{:?}", device.location()) });
        }
        let config = config.located(weights)?;
        let loader = Loader::new(weights, device);
        let embedding = loader.matrix(config.names.embedding()?, config.vocabulary, config.hidden)?;
        let layers: Result<Vec<Layer>, DecoderError> =
            (0..config.layers.len()).map(|index| Layer::load(&config, index, &loader)).collect();
        let layers = layers?;
        let norm = loader.norm(config.names.norm()?, config.hidden, config.norms)?;
        let head = match config.is_tied() {
            true => embedding.clone(),
            false => loader.matrix(config.names.head()?, config.vocabulary, config.hidden)?,
        };
        loader.check_surplus(&config)?;
        let head = Head { norm, linear: FrozenLinear::new(head, None)?, softcap: config.logit_softcap };
        Ok(Self { config, embedding, layers, head, trace_bytes: tune::TRACE_BYTES })
    }

    /// What config.json says about the network.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Caps the bytes that [`Self::loss_and_gradients`] keeps between its way forward and back (1 GiB until told
    /// otherwise); what does not fit is computed twice. The result does not change by a bit.
    pub fn with_trace_bytes(mut self, bytes: usize) -> Self {
        self.trace_bytes = bytes;
        self
    }

    /// Shows the values at `points` while a batch passes through, in the order in which they arise.
    ///
    /// `visit` gets `[batch.tokens().len(), width]` row-major, one row a token ([`Batch::rows`] says whose). Nothing
    /// behind the last point is computed, and nothing is kept.
    ///
    /// # Errors
    /// A token outside the vocabulary, a sequence longer than the network allows, a point outside it.
    pub fn tap(
        &self,
        batch: &Batch,
        deltas: Option<&SharedDeltas>,
        points: &[Point],
        mut visit: impl FnMut(Point, &[f32]),
    ) -> Result<(), DecoderError> {
        let wanted: BTreeSet<Point> = points.iter().copied().collect();
        let stages: Result<Vec<usize>, DecoderError> = wanted.iter().map(|point| self.stage(*point)).collect();
        let Some(last) = stages?.into_iter().max() else { return Ok(()) };
        let mut show = |point: Point, tensor: &Tensor| -> Result<(), DecoderError> {
            if wanted.contains(&point) {
                visit(point, View::of(tensor)?.values()?);
            }
            Ok(())
        };
        let (spans, ropes) = (all_rows(batch), self.rope_tables(batch)?);
        let pass = Pass { ropes: &ropes, deltas };
        let mut x = self.embed(batch)?;
        show(Point::Hidden(0), &x)?;
        for (index, layer) in self.layers.iter().enumerate().take_while(|(index, _)| last > 2 * index) {
            let (middle, _) = layer.attend(&x, &spans, pass)?;
            let mut trace = layer.trace_sites(&middle, pass)?;
            show(Point::Site(Site::new(index, Projection::Gate)), &trace.gate)?;
            show(Point::Site(Site::new(index, Projection::Up)), &trace.up)?;
            if wanted.contains(&Point::Activation(index)) {
                show(Point::Activation(index), &layer.gated(&trace)?)?;
            }
            if last > 2 * index + 1 {
                x = layer.finish_feed(&middle, &mut trace)?;
                show(Point::Hidden(index + 1), &x)?;
            }
        }
        if wanted.contains(&Point::Normed) {
            show(Point::Normed, &self.head.norm.forward(&x)?)?;
        }
        Ok(())
    }

    /// Logits of every token of a batch, `[batch.tokens().len(), vocabulary]`.
    ///
    /// # Errors
    /// A token outside the vocabulary, a sequence longer than the network allows.
    pub fn logits(&self, batch: &Batch, deltas: Option<&SharedDeltas>) -> Result<Tensor, DecoderError> {
        let (spans, ropes) = (all_rows(batch), self.rope_tables(batch)?);
        let pass = Pass { ropes: &ropes, deltas };
        let mut x = self.embed(batch)?;
        for layer in &self.layers {
            let (middle, _) = layer.attend(&x, &spans, pass)?;
            (x, _) = layer.feed(&middle, pass)?;
        }
        Ok(self.head.logits(&x)?)
    }

    /// How far a pass must go to reach a point: 2 l for what enters layer l, 2 l + 1 for its sites.
    fn stage(&self, point: Point) -> Result<usize, DecoderError> {
        let (layer, stage) = match point {
            Point::Hidden(index) => (index.saturating_sub(1), 2 * index),
            Point::Site(Site { layer, .. }) | Point::Activation(layer) => (layer, 2 * layer + 1),
            Point::Normed => (0, 2 * self.layers.len()),
        };
        if layer < self.layers.len() {
            return Ok(stage);
        }
        let (expected, found) = (format!("a layer below {}", self.layers.len()), layer.to_string());
        Err(DecoderError::Deltas { site: Site::new(layer, Projection::Gate), expected, found })
    }

    fn embed(&self, batch: &Batch) -> Result<Tensor, DecoderError> {
        for (sequence, rows) in batch.rows().enumerate() {
            let tokens = batch.tokens().get(rows).unwrap_or_default();
            if let Some(token) = tokens.iter().find(|token| **token as usize >= self.config.vocabulary) {
                let (expected, found) = (format!("tokens below {}", self.config.vocabulary), token.to_string());
                return Err(DecoderError::Batch { sequence, expected, found });
            }
        }
        let tokens = Tensor::new(batch.tokens(), self.embedding.device())?;
        let embedded = self.embedding.index_select(&tokens, 0)?.to_dtype(DType::F32)?;
        if self.config.embedding_scale != 1.0 {
            update(&embedded, |values| kernels::scale(values, self.config.embedding_scale))?;
        }
        Ok(embedded)
    }

    fn rope_tables(&self, batch: &Batch) -> Result<Vec<RopeTable<'_>>, DecoderError> {
        let lengths: Vec<usize> = batch.rows().map(|rows| rows.len()).collect();
        self.check_lengths(&lengths)?;
        Ok(self.ropes(&lengths))
    }

    fn check_lengths(&self, lengths: &[usize]) -> Result<(), DecoderError> {
        let most = self.config.max_positions;
        match lengths.iter().position(|length| *length > most) {
            Some(sequence) => {
                let expected = format!("at most {most} tokens (max_position_embeddings)");
                let found = lengths.get(sequence).map(ToString::to_string).unwrap_or_default();
                Err(DecoderError::Batch { sequence, expected, found })
            }
            None => Ok(()),
        }
    }

    /// Tables for sequences of so many tokens each.
    fn ropes(&self, lengths: &[usize]) -> Vec<RopeTable<'_>> {
        self.config.ropes.iter().map(|rope| RopeTable::new(rope, lengths)).collect()
    }
}

fn all_rows(batch: &Batch) -> Spans {
    Spans::new(batch.rows(), (0..batch.tokens().len()).collect())
}
