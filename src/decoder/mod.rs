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
//! | `weights`, `matrix`, `parts` | checked tensors from a checkpoint, resident or read when needed |
//! | `batch`, `site`, `deltas` | what goes in and out |
//! | `cache`, `sweep` | sequences that grow token by token; many that pass layer by layer |
//! | `layer`, `attention`, `norm`, `head`, `linear` | the parts, each with its gradient |
//! | `kernels`, `product`, `storage` | arithmetic on slices; the only files that know the device |
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
mod matrix;
mod names;
mod norm;
mod parts;
mod product;
mod rope;
mod site;
mod storage;
mod sweep;
mod tune;
mod weights;

use std::collections::BTreeSet;

pub use candle_core::Device;
use candle_core::Tensor;

pub use batch::{Batch, Example, Target, passes};
pub use cache::Cache;
pub use config::{Activation, AttentionShape, Config, LayerKind, Norms, SiteTensor};
pub use deltas::{SharedDeltas, SiteDeltas};
pub use error::DecoderError;
pub use rope::{Rope, RopeScaling};
pub use site::{Fused, Point, Projection, Site};
pub use sweep::Sweep;
pub use tune::{Gradients, Prepared};
pub use weights::Weights;

use attention::Spans;
use head::Head;
use layer::{Layer, Pass};
use linear::FrozenLinear;
use matrix::Matrix;
use rope::RopeTable;
use storage::{View, update};
use weights::Loader;

use crate::checkpoint::Checkpoint;

/// Tokens that run together where there are more: few enough that what they need is small beside the weights, enough
/// that reading the weights is cheap beside multiplying by them. Always the same, since sums depend on it.
pub const PASS_TOKENS: usize = 1024;

/// A decoder with its weights.
#[derive(Debug)]
pub struct Decoder<'w> {
    config: Config,
    embedding: Matrix<'w>,
    layers: Vec<Layer<'w>>,
    head: Head<'w>,
    trace_bytes: usize,
    resident: u64,
}

impl<'w> Decoder<'w> {
    /// The network of a checkpoint.
    ///
    /// # Errors
    /// As [`Config::from_json`] and [`Self::load`].
    pub fn from_checkpoint(checkpoint: &'w Checkpoint, device: &Device) -> Result<Self, DecoderError> {
        Self::load(Config::from_checkpoint(checkpoint)?, checkpoint, device)
    }

    /// Reads all weights from anywhere.
    ///
    /// # Errors
    /// A tensor is missing, of another shape or type than config.json says, not finite, or not part of the network.
    pub fn load(config: Config, weights: &'w dyn Weights, device: &Device) -> Result<Self, DecoderError> {
        Self::load_within(config, weights, device, u64::MAX)
    }

    /// Reads `resident` bytes of matrices; the rest is read from `weights` whenever it is needed, a block at a time. The
    /// head and the upper layers come first: tuning needs them in every step. Where a matrix lies changes no result.
    ///
    /// # Errors
    /// As [`Self::load`]; what is not finite in a matrix that is not resident is found when it is used.
    pub fn load_within(
        config: Config,
        weights: &'w dyn Weights,
        device: &Device,
        resident: u64,
    ) -> Result<Self, DecoderError> {
        if !device.is_cpu() {
            return Err(DecoderError::Device { found: format!("{:?}", device.location()) });
        }
        let config = config.located(weights)?;
        let loader = Loader::new(weights, device, resident);
        let norm = loader.norm(config.names.norm()?, config.hidden, config.norms)?;
        let name = if config.is_tied() { config.names.embedding()? } else { config.names.head()? };
        let head = loader.matrix(name, config.vocabulary, config.hidden)?;
        let mut layers = Vec::with_capacity(config.layers.len());
        for index in (0..config.layers.len()).rev() {
            layers.push(Layer::load(&config, index, &loader)?);
        }
        layers.reverse();
        let embedding = match config.is_tied() {
            true => head.clone(),
            false => loader.matrix(config.names.embedding()?, config.vocabulary, config.hidden)?,
        };
        loader.check_surplus(&config)?;
        let head = Head { norm, linear: FrozenLinear::new(head, None), softcap: config.logit_softcap };
        let resident = loader.resident(resident);
        Ok(Self { config, embedding, layers, head, trace_bytes: tune::TRACE_BYTES, resident })
    }

    /// What config.json says about the network.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Bytes of matrices in memory.
    pub fn resident_bytes(&self) -> u64 {
        self.resident
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
        self.head.logits(&self.last_hidden(batch, deltas)?)
    }

    /// Logits behind the last token of each sequence, `[batch.len(), vocabulary]`.
    ///
    /// # Errors
    /// A token outside the vocabulary, a sequence longer than the network allows.
    pub fn next_logits(&self, batch: &Batch) -> Result<Tensor, DecoderError> {
        let last: Vec<usize> = batch.rows().map(|rows| rows.end - 1).collect();
        self.head.logits(&layer::select(&self.last_hidden(batch, None)?, &last)?)
    }

    /// The residual stream behind the last layer.
    fn last_hidden(&self, batch: &Batch, deltas: Option<&SharedDeltas>) -> Result<Tensor, DecoderError> {
        let (spans, ropes) = (all_rows(batch), self.rope_tables(batch)?);
        let pass = Pass { ropes: &ropes, deltas };
        let mut x = self.embed(batch)?;
        for layer in &self.layers {
            let (middle, _) = layer.attend(&x, &spans, pass)?;
            (x, _) = layer.feed(&middle, pass)?;
        }
        Ok(x)
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
        let embedded = self.embedding.select(batch.tokens())?;
        if self.config.embedding_scale != 1.0 {
            update(&embedded, |values| kernels::scale(values, self.config.embedding_scale))?;
        }
        Ok(embedded)
    }

    fn rope_tables(&self, batch: &Batch) -> Result<Vec<RopeTable<'_>>, DecoderError> {
        let lengths: Vec<usize> = batch.rows().map(|rows| rows.len()).collect();
        self.config.check_lengths(lengths.iter().copied())?;
        Ok(self.ropes(&lengths))
    }

    /// Tables for sequences of so many tokens each.
    fn ropes(&self, lengths: &[usize]) -> Vec<RopeTable<'_>> {
        self.config.ropes.iter().map(|rope| RopeTable::new(rope, lengths)).collect()
    }
}

fn all_rows(batch: &Batch) -> Spans {
    Spans::new(batch.rows(), (0..batch.tokens().len()).collect())
}
