//! Where a network can be tapped and tuned.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A projection of a gated feed-forward part whose rows are neurons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// The one that passes through the activation function.
    Gate,
    /// The one that multiplies it.
    Up,
    /// Both, gate rows before up rows, where a checkpoint holds them in one tensor and they are to be one site.
    GateUp,
}

impl Projection {
    /// The two halves, in the order in which sites are listed.
    pub const HALVES: [Self; 2] = [Self::Gate, Self::Up];

    /// The word for it: "gate", "up" or "gate_up".
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gate => "gate",
            Self::Up => "up",
            Self::GateUp => "gate_up",
        }
    }
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One projection of one layer. A neuron is one of its output rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Site {
    /// The layer, from 0.
    pub layer: usize,
    /// The projection.
    pub projection: Projection,
}

impl Site {
    /// The site of a layer's projection.
    pub const fn new(layer: usize, projection: Projection) -> Self {
        Self { layer, projection }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {} {}", self.layer, self.projection)
    }
}

/// What counts as a site in networks whose gate and up projections are one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fused {
    /// Each half is a site, as it is in other networks.
    #[default]
    Halves,
    /// The tensor is one site: probed, cut at one threshold and clustered as a whole, so that neurons of both halves may
    /// share a delta. The paper's parameter counts for Phi fit this.
    One,
}

/// A place whose values a forward pass can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    /// The residual stream: 0 is the embedding, `l` what layer `l - 1` leaves. Width: hidden size.
    Hidden(usize),
    /// The linear output of a site, before the activation function. Width: feed-forward size.
    Site(Site),
    /// The gated product of a layer, which is the input of its down projection. Width: feed-forward size.
    Activation(usize),
    /// The residual stream after the last layer and the final norm. Width: hidden size.
    Normed,
}
