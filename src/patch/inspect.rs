//! Inspect: what a patch says and holds, whoever made it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use super::Contents;
use super::place::{Part, Site, sites};
use crate::digest::{Blake3, Sha256};
use crate::format::manifest::Tool;
use crate::format::{Edit, Kind, Level, Sketch, Timestamp, Tolerance};
use crate::tensor::{Dtype, Shape, TensorName};

/// A patch laid open. No signature is checked here.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// The patch's id: the SHA-256 of its manifest.
    pub id: Sha256,
    /// Equal for patches of equal content.
    pub content_root: Blake3,
    /// Its name.
    pub name: String,
    /// The series it belongs to.
    pub series: String,
    /// Its number in the series.
    pub sequence: u64,
    /// Patches that it replaces.
    pub supersedes: Vec<Sha256>,
    /// When it was made, as its maker says.
    pub created: Timestamp,
    /// What made it, as its maker says.
    pub tool: Tool,
    /// Always false: `verify` checks signatures.
    pub signatures_checked: bool,
    /// The keys that claim to have signed.
    pub claimed_signers: Vec<Sha256>,
    /// What it was made for.
    pub base: BaseSummary,
    /// The parts of its payload.
    pub sections: Vec<SectionSummary>,
    /// What it needs that this version does not know.
    pub not_understood: Vec<String>,
    /// Sums over all edits.
    pub totals: Totals,
    /// Every touched tensor.
    pub edits: Vec<EditSummary>,
    /// How it was made, as its maker says.
    pub creation: Map<String, Value>,
    /// Members of the manifest that this version does not know.
    pub extensions: Map<String, Value>,
}

/// What a patch was made for.
#[derive(Debug, Clone, Serialize)]
pub struct BaseSummary {
    /// The base's name.
    pub name: String,
    /// Its architecture.
    pub model_type: String,
    /// How closely a checkpoint must match it.
    pub levels: Vec<Level>,
    /// How far from it a descendant may be; absent where none is permitted, or the sketch's codec is unknown.
    pub tolerance: Option<Tolerance>,
}

/// One part of the payload.
#[derive(Debug, Clone, Serialize)]
pub struct SectionSummary {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: String,
    /// How it is stored.
    pub codec: String,
    /// Whether a reader must understand it.
    pub critical: bool,
    /// Whether this version does.
    pub known: bool,
    /// Bytes in the file.
    pub stored: u64,
    /// Bytes decoded.
    pub length: u64,
}

/// Sums over all edits.
#[derive(Debug, Clone, Serialize)]
pub struct Totals {
    /// Touched tensors.
    pub tensors: u64,
    /// Touched rows.
    pub rows: u64,
    /// Clusters.
    pub clusters: u64,
    /// Trained numbers: clusters times row length.
    pub parameters: u64,
    /// Bytes of the touched rows.
    pub touched_bytes: u64,
    /// Bytes of the patch file.
    pub file_bytes: u64,
    /// Whether the patch carries what reverts it.
    pub residual: bool,
}

/// One touched tensor.
#[derive(Debug, Clone, Serialize)]
pub struct EditSummary {
    /// The tensor.
    pub tensor: TensorName,
    /// The layer's number, if the name has one.
    pub layer: Option<u64>,
    /// The expert's number, if the name has one.
    pub expert: Option<u64>,
    /// The projection: the name's last part before `weight`, behind that of a shared expert.
    pub projection: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Shape,
    /// Whether rows or columns of the stored matrix are touched.
    pub layout: String,
    /// Touched rows.
    pub rows: u64,
    /// Rows it has.
    pub of: u64,
    /// Its clusters.
    pub clusters: Vec<ClusterSummary>,
    /// Its touched rows once more, by expert and half, of a tensor that holds more than one.
    pub parts: Vec<PartSummary>,
    /// Frobenius norm of the change to the whole tensor.
    pub norm: f64,
}

/// The touched rows of a tensor that are of one expert and, where a matrix holds two projections, of one of these.
#[derive(Debug, Clone, Serialize)]
pub struct PartSummary {
    /// Which part.
    #[serde(flatten)]
    pub part: Part,
    /// How many rows are touched.
    pub rows: u64,
    /// Rows that the part has.
    pub of: u64,
    /// Which are touched, ascending, counted within the part: the numbers of neurons, where rows are such.
    pub indices: Vec<u32>,
    /// Clusters that have rows here, by their numbers in the tensor.
    pub clusters: Vec<u32>,
    /// Frobenius norm of the change to the part.
    pub norm: f64,
}

/// One cluster of rows that share a delta.
#[derive(Debug, Clone, Serialize)]
pub struct ClusterSummary {
    /// How many rows are in it.
    pub rows: u64,
    /// Which, ascending.
    pub indices: Vec<u32>,
    /// Euclidean norm of its delta.
    pub norm: f64,
}

/// Lays a patch open.
pub fn inspect(contents: &Contents) -> Inspection {
    let manifest = &contents.manifest;
    let edits: Vec<EditSummary> =
        contents.edits.iter().zip(sites(contents).into_values()).map(|(edit, site)| summary(edit, site)).collect();
    Inspection {
        id: contents.id(),
        content_root: manifest.content_root,
        name: manifest.name.clone(),
        series: manifest.series.clone(),
        sequence: manifest.sequence,
        supersedes: manifest.supersedes.clone(),
        created: manifest.created,
        tool: manifest.tool.clone(),
        signatures_checked: false,
        claimed_signers: contents.claimed_signers().to_vec(),
        base: BaseSummary {
            name: manifest.base.name.clone(),
            model_type: manifest.base.architecture.model_type.clone(),
            levels: manifest.base.levels.clone(),
            tolerance: contents.sketch.as_ref().map(Sketch::tolerance),
        },
        sections: sections(contents),
        not_understood: manifest.not_understood(),
        totals: Totals {
            tensors: contents.edits.len() as u64,
            rows: contents.edits.rows() as u64,
            clusters: edits.iter().map(|edit| edit.clusters.len() as u64).sum(),
            parameters: contents.edits.parameters() as u64,
            touched_bytes: contents.edits.touched_bytes(),
            file_bytes: contents.bytes().len() as u64,
            residual: manifest.section(&Kind::Residual).is_some(),
        },
        edits,
        creation: manifest.creation.clone(),
        extensions: manifest.extensions.clone(),
    }
}

fn sections(contents: &Contents) -> Vec<SectionSummary> {
    let section = contents.manifest.sections.iter().map(|entry| SectionSummary {
        name: entry.name.clone(),
        kind: entry.kind.as_str().to_owned(),
        codec: entry.codec.as_str().to_owned(),
        critical: entry.critical,
        known: entry.kind.is_known() && entry.codec.is_known(),
        stored: entry.stored.length,
        length: entry.content.length,
    });
    section.collect()
}

fn summary(edit: &Edit, site: Site) -> EditSummary {
    let norm = |cluster| dot(edit.delta(cluster), edit.delta(cluster)).sqrt();
    let mut clusters: Vec<ClusterSummary> = (0..edit.k() as u32)
        .map(|cluster| ClusterSummary { rows: 0, indices: Vec::new(), norm: norm(cluster) })
        .collect();
    for (row, cluster) in edit.rows().iter().zip(edit.clusters()) {
        if let Some(cluster) = clusters.get_mut(*cluster as usize) {
            cluster.rows += 1;
            cluster.indices.push(*row);
        }
    }
    let norm = clusters.iter().map(|cluster| cluster.rows as f64 * cluster.norm * cluster.norm).sum::<f64>().sqrt();
    EditSummary {
        tensor: edit.tensor().clone(),
        layer: site.layer,
        expert: site.expert,
        parts: parts(edit, &site, &clusters),
        projection: site.projection,
        dtype: edit.dtype(),
        shape: edit.shape().clone(),
        layout: edit.layout().to_string(),
        rows: edit.rows().len() as u64,
        of: edit.vectors().count(),
        clusters,
        norm,
    }
}

fn parts(edit: &Edit, site: &Site, clusters: &[ClusterSummary]) -> Vec<PartSummary> {
    let mut members: BTreeMap<Part, (Vec<u32>, Vec<u32>)> = BTreeMap::new();
    for (row, cluster) in edit.rows().iter().zip(edit.clusters()).filter(|_| site.is_divided()) {
        let (part, row) = site.find(u64::from(*row));
        let (rows, of) = members.entry(part).or_default();
        rows.push(row as u32);
        of.push(*cluster);
    }
    let norm = |cluster: &u32| clusters.get(*cluster as usize).map_or(0.0, |cluster| cluster.norm * cluster.norm);
    let part = members.into_iter().map(|(part, (indices, mut clusters))| {
        let norm = clusters.iter().map(norm).sum::<f64>().sqrt();
        clusters.sort_unstable();
        clusters.dedup();
        PartSummary { part, rows: indices.len() as u64, of: site.part_rows(), indices, clusters, norm }
    });
    part.collect()
}

/// Inner product in binary64.
pub(super) fn dot(one: &[f32], other: &[f32]) -> f64 {
    one.iter().zip(other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
