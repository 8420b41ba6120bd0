//! Tensors in memory, which a decoder can be built from.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use nestpatch::decoder::{DecoderError, Weights};
use nestpatch::tensor::{Shape, TensorName};
use safetensors::{Dtype, SafeTensors};

/// Tensors in memory, from one or more safetensors files.
#[derive(Default, Clone)]
pub(crate) struct Tensors(pub(crate) BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    pub(crate) fn read(path: &Path) -> Self {
        let mut tensors = Self::default();
        tensors.add(path);
        tensors
    }

    /// All safetensors files of a checkpoint folder.
    pub(crate) fn checkpoint(folder: &Path) -> Self {
        let mut tensors = Self::default();
        for entry in fs::read_dir(folder).expect("the checkpoint can be listed") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                tensors.add(&path);
            }
        }
        tensors
    }

    fn add(&mut self, path: &Path) {
        let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for (name, view) in SafeTensors::deserialize(&bytes).expect("a safetensors file").iter() {
            self.0.insert(name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
        }
    }

    /// Adds a tensor of values rounded to `dtype`.
    pub(crate) fn insert(&mut self, name: &str, dtype: Dtype, shape: &[usize], values: &[f32]) {
        let bytes = match dtype {
            Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
            other => panic!("no {other:?} here"),
        };
        self.0.insert(name.to_owned(), (dtype, shape.to_vec(), bytes));
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(crate) fn shape(&self, name: &str) -> &[usize] {
        &self.0[name].1
    }

    pub(crate) fn f32s(&self, name: &str) -> Vec<f32> {
        let (dtype, _, bytes) = self.0.get(name).unwrap_or_else(|| panic!("no tensor {name}"));
        assert_eq!(*dtype, Dtype::F32, "{name}");
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    pub(crate) fn tokens(&self, name: &str) -> Vec<u32> {
        let (dtype, _, bytes) = &self.0[name];
        assert_eq!(*dtype, Dtype::I64, "{name}");
        bytes.chunks_exact(8).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}

impl Weights for Tensors {
    fn names(&self) -> Vec<TensorName> {
        self.0.keys().map(|name| TensorName::new(name.as_str()).expect("a name")).collect()
    }

    fn describe(&self, name: &TensorName) -> Option<(String, Shape)> {
        let (dtype, shape, _) = self.0.get(name.as_str())?;
        let dims: Vec<u64> = shape.iter().map(|dim| *dim as u64).collect();
        Some((format!("{dtype:?}"), Shape::new(dims).expect("a shape")))
    }

    fn read(&self, name: &TensorName) -> Result<Vec<u8>, DecoderError> {
        self.0.get(name.as_str()).map(|entry| entry.2.clone()).ok_or(DecoderError::Missing { name: name.clone() })
    }
}
