//! Where a row is in a model, as far as the names and shapes tell that families give their feed-forward tensors: in which
//! layer and expert, and in which half of two projections that are stored as one. For people; nothing is decided by it.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::Contents;
use crate::format::limits::MAX_EDITS;
use crate::format::{Edit, Layout, Vectors};
use crate::tensor::TensorName;

/// Projections that hold gate and up in one matrix.
const FUSED: [&str; 2] = ["gate_up_proj", "input_linear"];
/// Families that store them transposed, so that neurons are columns.
const TRANSPOSED: [&str; 3] = ["gpt_oss", "llama4", "llama4_text"];
/// Families in which gate and up take turns; in all others all of gate comes first.
const INTERLEAVED: &str = "gpt_oss";
/// Parts that a patch is shown by: as many as it may have tensors, so that a stranger's stack of a million matrices is not.
const MAX_PARTS: usize = MAX_EDITS;

/// Half of a matrix that holds two projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Half {
    /// What the activation function is applied to.
    Gate,
    /// What that is multiplied with.
    Up,
}

impl fmt::Display for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gate => "gate",
            Self::Up => "up",
        })
    }
}

/// Part of a tensor that is one projection of one expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Part {
    /// The expert: by the name, or the matrix of a tensor that is a stack of them.
    pub expert: Option<u64>,
    /// Which half of a matrix, where it holds two projections.
    pub half: Option<Half>,
}

/// What is known of the rows of one tensor.
#[derive(Debug, Clone)]
pub struct Site {
    /// The layer's number, if the name has one.
    pub layer: Option<u64>,
    /// The name's last part before `weight`, behind that of a shared expert.
    pub projection: String,
    /// The expert's number, if the name has one.
    pub expert: Option<u64>,
    stacked: bool,
    per_matrix: u64,
    rows: u64,
    halves: Option<Halves>,
}

/// The sites of a patch's tensors. Where their parts are more than anyone reads, each is one part.
pub fn sites(contents: &Contents) -> BTreeMap<&TensorName, Site> {
    let model_type = &contents.manifest.base.architecture.model_type;
    let site = |edit: &Edit| Site::new(edit.tensor(), edit.vectors(), model_type);
    let parts: usize = contents.edits.iter().map(|edit| site(edit).parts_at_most(edit.rows())).sum();
    let shown = |site: Site| if parts > MAX_PARTS { site.undivided() } else { site };
    contents.edits.iter().map(|edit| (edit.tensor(), shown(site(edit)))).collect()
}

/// How two projections share a matrix.
#[derive(Debug, Clone, Copy)]
enum Halves {
    InTurn,
    OneAfterTheOther,
}

impl Site {
    /// Of a tensor with these vectors, in a checkpoint of this architecture.
    pub fn new(tensor: &TensorName, vectors: Vectors, model_type: &str) -> Self {
        let parts: Vec<&str> = tensor.as_str().split('.').collect();
        let after = |word: &str| parts.iter().skip_while(move |part| **part != word).nth(1);
        let named = parts.iter().rev().find(|part| !matches!(**part, "weight" | "bias")).copied().unwrap_or_default();
        let shared = parts.iter().find(|part| matches!(**part, "shared_expert" | "shared_experts" | "shared_mlp"));
        let neurons = if TRANSPOSED.contains(&model_type) { Layout::Columns } else { Layout::Rows };
        let fused = FUSED.contains(&named) && vectors.layout() == neurons && vectors.per_matrix().is_multiple_of(2);
        let halves = if model_type == INTERLEAVED { Halves::InTurn } else { Halves::OneAfterTheOther };
        Self {
            layer: parts.iter().find_map(|part| part.parse().ok()),
            projection: shared.map_or_else(|| named.to_owned(), |shared| format!("{shared}.{named}")),
            expert: after("experts").and_then(|part| part.parse().ok()),
            stacked: vectors.matrices() > 1,
            per_matrix: vectors.per_matrix(),
            rows: vectors.count(),
            halves: fused.then_some(halves),
        }
    }

    /// The same, all of the tensor taken for one part.
    fn undivided(self) -> Self {
        Self { stacked: false, halves: None, per_matrix: self.rows, ..self }
    }

    /// In how many parts rows may be that ascend.
    fn parts_at_most(&self, rows: &[u32]) -> usize {
        let matrix = |row: &u32| u64::from(*row) / self.per_matrix;
        let seams = rows.iter().zip(rows.iter().skip(1)).filter(|(one, other)| matrix(one) != matrix(other)).count();
        (seams + 1) * if self.halves.is_some() { 2 } else { 1 }
    }

    /// Whether the tensor has more than one part.
    pub fn is_divided(&self) -> bool {
        self.stacked || self.halves.is_some()
    }

    /// How many rows each part has.
    pub fn part_rows(&self) -> u64 {
        if self.halves.is_some() { self.per_matrix / 2 } else { self.per_matrix }
    }

    /// The part that a row is in, and its number there.
    pub fn find(&self, row: u64) -> (Part, u64) {
        let (matrix, row) = (row / self.per_matrix, row % self.per_matrix);
        let (half, row) = match self.halves {
            None => (None, row),
            Some(Halves::InTurn) => (Some(row % 2), row / 2),
            Some(Halves::OneAfterTheOther) => (Some(row / self.part_rows()), row % self.part_rows()),
        };
        let half = half.map(|half| if half == 0 { Half::Gate } else { Half::Up });
        (Part { expert: if self.stacked { Some(matrix) } else { self.expert }, half }, row)
    }

    /// A row in words, where they say more than its number: `expert 3, gate 7`.
    pub fn describe(&self, row: u64) -> Option<String> {
        let (part, row) = self.find(row);
        let row = match part.half {
            Some(half) => format!("{half} {row}"),
            None => format!("row {row}"),
        };
        match (part.expert.filter(|_| self.stacked), part.half) {
            (None, None) => None,
            (None, Some(_)) => Some(row),
            (Some(expert), _) => Some(format!("expert {expert}, {row}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Shape;

    fn site(name: &str, layout: Layout, shape: &[u64], model_type: &str) -> Site {
        let vectors = Vectors::new(layout, &Shape::new(shape).unwrap()).unwrap();
        Site::new(&TensorName::new(name).unwrap(), vectors, model_type)
    }

    #[test]
    fn names_tell_layer_and_projection() {
        for (name, layer, projection) in [
            ("model.layers.7.mlp.gate_proj.weight", Some(7), "gate_proj"),
            ("transformer.h.11.mlp.c_fc.weight", Some(11), "c_fc"),
            ("model.layers.3.mlp.experts.gate_up_proj", Some(3), "gate_up_proj"),
            ("model.layers.3.mlp.experts.12.up_proj.weight", Some(3), "up_proj"),
            ("model.layers.3.mlp.shared_expert.up_proj.weight", Some(3), "shared_expert.up_proj"),
            ("model.layers.3.shared_mlp.input_linear.weight", Some(3), "shared_mlp.input_linear"),
            ("lm_head.weight", None, "lm_head"),
            ("weight", None, ""),
        ] {
            let site = site(name, Layout::Rows, &[4, 2], "llama");
            assert_eq!((site.layer, site.projection.as_str()), (layer, projection), "{name}");
        }
    }

    /// A row of each shape: the tensor, its family, the row, where that is, and how it is said.
    #[test]
    fn rows_are_found_in_their_expert_and_half() {
        use Half::{Gate, Up};
        use Layout::{Columns, Rows};
        let stack = "model.layers.0.mlp.experts.gate_up_proj";
        for (name, layout, shape, family, row, expert, half, within, said) in [
            ("m.0.mlp.up_proj.weight", Rows, &[4, 2][..], "llama", 3, None, None, 3, None),
            ("m.0.mlp.gate_up_proj.weight", Rows, &[6, 2], "phi3", 2, None, Some(Gate), 2, Some("gate 2")),
            ("m.0.mlp.gate_up_proj.weight", Rows, &[6, 2], "phi3", 3, None, Some(Up), 0, Some("up 0")),
            ("m.0.mlp.gate_up_proj.weight", Rows, &[5, 2], "phi3", 4, None, None, 4, None),
            ("m.0.mlp.gate_up_proj.weight", Columns, &[6, 2], "phi3", 1, None, None, 1, None),
            ("m.0.mlp.experts.12.up_proj.weight", Rows, &[4, 2], "qwen3_moe", 3, Some(12), None, 3, None),
            (stack, Rows, &[3, 6, 2], "mixtral", 10, Some(1), Some(Up), 1, Some("expert 1, up 1")),
            (stack, Columns, &[3, 2, 6], "gpt_oss", 15, Some(2), Some(Up), 1, Some("expert 2, up 1")),
            (stack, Columns, &[3, 2, 6], "gpt_oss", 16, Some(2), Some(Gate), 2, Some("expert 2, gate 2")),
            (stack, Columns, &[3, 2, 6], "llama4", 16, Some(2), Some(Up), 1, Some("expert 2, up 1")),
            (stack, Rows, &[3, 2, 6], "gpt_oss", 5, Some(2), None, 1, Some("expert 2, row 1")),
            ("m.0.mlp.experts.down_proj", Rows, &[3, 2, 6], "mixtral", 5, Some(2), None, 1, Some("expert 2, row 1")),
        ] {
            let site = site(name, layout, shape, family);
            assert_eq!(site.find(row), (Part { expert, half }, within), "{name} {family} {row}");
            assert_eq!(site.describe(row).as_deref(), said, "{name} {family} {row}");
        }
    }
}
