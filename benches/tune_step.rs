//! Time of a tuning step: loss and gradients of shared deltas, on weights made up here.
//!
//! `cargo bench --bench tune_step -- [SHAPE] [f32|bf16] [STEPS]`; `RAYON_NUM_THREADS` sets the threads. Shapes: `toy`
//! (the toy world's), `bench` (16 x 64 tokens through 8 layers of 512, vocabulary 32,000, loss on the second half).
//! Prints process CPU seconds, so a busy machine does not disturb it much, and what share of them the matrix products
//! would take at the speed of one large product.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use candle_core::{Device, Tensor};
use half::bf16;
use nestpatch::decoder::{
    Batch, Config, Decoder, DecoderError, Example, Prepared, SharedDeltas, SiteDeltas, Sweep, Target, Weights,
};
use nestpatch::tensor::{Dtype, Shape, TensorName};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

struct Run {
    config: Config,
    sequences: usize,
    length: usize,
    /// The first position whose next token is a target.
    first_target: usize,
    rows: usize,
    clusters: usize,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let argument = |index: usize, default: &str| arguments.get(index).map_or(default, String::as_str).to_owned();
    let dtype = if argument(1, "f32") == "bf16" { Dtype::Bf16 } else { Dtype::F32 };
    let steps: usize = argument(2, "5").parse().expect("a number of steps");
    let run = shape(&argument(0, "bench"));
    let weights = Random { config: run.config.clone(), dtype };
    let decoder = Decoder::load(run.config.clone(), &weights, &Device::Cpu).unwrap();
    let loaded = peak_bytes();
    let (deltas, prepared) = (deltas(&run), decoder.prepare(&examples(&run), 0).unwrap());
    let batch: Vec<&Prepared> = prepared.iter().collect();
    decoder.loss_and_gradients(&batch, &deltas).unwrap();
    let (wall, cpu) = (Instant::now(), cpu_seconds());
    for _ in 0..steps {
        decoder.loss_and_gradients(&batch, &deltas).unwrap();
    }
    let (wall, cpu) = (wall.elapsed().as_secs_f64() / steps as f64, (cpu_seconds() - cpu) / steps as f64);
    let batches = [Batch::new(examples(&run).iter().map(Example::tokens)).unwrap()];
    let from = cpu_seconds();
    for _ in 0..steps {
        let mut sweep = Sweep::new(&decoder, &batches).unwrap();
        while sweep.next_layer(|_, _, _| ()).unwrap().is_some() {}
    }
    println!("{:.3} CPU s a probing pass over as many tokens", (cpu_seconds() - from) / steps as f64);
    let (operations, speed) = (operations(&run), peak_speed());
    println!(
        "{cpu:.3} CPU s a step, {wall:.3} s, {:.0} sequences a CPU second, {:.0} tokens a CPU second",
        run.sequences as f64 / cpu,
        (run.sequences * run.length) as f64 / cpu
    );
    println!(
        "matrix products: {:.1} G operations, at {:.0} G a CPU second {:.0} % of the step",
        operations / 1e9,
        speed / 1e9,
        100.0 * operations / speed / cpu
    );
    println!("peak memory {} MiB, of it {} MiB after loading", peak_bytes() >> 20, loaded >> 20);
}

fn shape(name: &str) -> Run {
    let config = |hidden, feed_forward, layers, heads, vocabulary| {
        let config = json!({"model_type": "llama", "hidden_size": hidden, "intermediate_size": feed_forward,
            "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": vocabulary});
        Config::from_json(config.as_object().unwrap()).unwrap()
    };
    match name {
        "toy" => {
            let config = config(192, 768, 4, 6, 1500);
            Run { config, sequences: 32, length: 30, first_target: 20, rows: 20, clusters: 2 }
        }
        "bench" => {
            let config = config(512, 1376, 8, 8, 32_000);
            Run { config, sequences: 16, length: 64, first_target: 31, rows: 69, clusters: 8 }
        }
        other => panic!("no shape {other}"),
    }
}

/// Multiplications and additions of the matrix products that a step cannot avoid.
fn operations(run: &Run) -> f64 {
    let config = &run.config;
    let tokens = (run.sequences * run.length) as f64;
    let targets = (run.sequences * (run.length - 1 - run.first_target)) as f64;
    let (hidden, feed) = (config.hidden as f64, config.feed_forward as f64);
    let queries = config.attention.query_width() as f64 * hidden;
    let keys = config.attention.kv_width() as f64 * hidden;
    let middle = config.layers.len() as f64 - 2.0;
    // Forward and backward through whole layers; the lowest has no attention and stops at its sites; in the last only
    // targets ask.
    let whole = 4.0 * tokens * middle * (2.0 * queries + 2.0 * keys + 3.0 * hidden * feed);
    let lowest = 2.0 * tokens * 4.0 * hidden * feed;
    let last = 4.0 * (targets * (2.0 * queries + 3.0 * hidden * feed) + tokens * 2.0 * keys);
    whole + lowest + last + 4.0 * targets * hidden * config.vocabulary as f64
}

/// Operations a CPU second of one large product.
fn peak_speed() -> f64 {
    let large = Tensor::rand(-1.0_f32, 1.0, (1536, 1536), &Device::Cpu).unwrap();
    let time = |times: usize| {
        let from = cpu_seconds();
        (0..times).for_each(|_| drop(large.matmul(&large.t().unwrap()).unwrap()));
        (cpu_seconds() - from) / times as f64
    };
    time(1);
    2.0 * 1536_f64.powi(3) / time(10)
}

fn examples(run: &Run) -> Vec<Example> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let vocabulary = run.config.vocabulary as u32;
    let example = |_| {
        let tokens: Vec<u32> = (0..run.length).map(|_| rng.random_range(0..vocabulary)).collect();
        let targets = (run.first_target..run.length - 1).map(|position| Target {
            position,
            token: tokens[position + 1],
            weight: 1.0,
        });
        Example::new(tokens.clone(), targets.collect())
    };
    (0..run.sequences).map(example).collect()
}

fn deltas(run: &Run) -> SharedDeltas {
    let sites = run.config.sites().map(|site| {
        let rows = (0..run.rows as u32).map(|row| row * 7).collect();
        let clusters = (0..run.rows as u32).map(|row| row % run.clusters as u32).collect();
        let mut deltas = SiteDeltas::zero(rows, clusters, run.clusters, run.config.hidden);
        deltas.values_mut().fill(0.01);
        (site, deltas)
    });
    SharedDeltas::new(&run.config, sites.collect::<BTreeMap<_, _>>()).unwrap()
}

/// Weights of about the scale that trained ones have.
struct Random {
    config: Config,
    dtype: Dtype,
}

impl Random {
    fn dims(&self, name: &str) -> Vec<u64> {
        let config = &self.config;
        let [hidden, feed, vocabulary] =
            [config.hidden, config.feed_forward, config.vocabulary].map(|size| size as u64);
        match name.rsplit('.').nth(1).unwrap_or_default() {
            "embed_tokens" | "lm_head" => vec![vocabulary, hidden],
            "gate_proj" | "up_proj" => vec![feed, hidden],
            "down_proj" => vec![hidden, feed],
            "k_proj" | "v_proj" => vec![config.attention.kv_width() as u64, hidden],
            "q_proj" | "o_proj" => vec![hidden, hidden],
            _ => vec![hidden],
        }
    }
}

impl Weights for Random {
    fn names(&self) -> Vec<TensorName> {
        vec![]
    }

    fn describe(&self, name: &TensorName) -> Option<(String, Shape)> {
        Some((self.dtype.to_string(), Shape::new(self.dims(name.as_str())).unwrap()))
    }

    fn read(&self, name: &TensorName) -> Result<Vec<u8>, DecoderError> {
        let dims = self.dims(name.as_str());
        let mut rng = ChaCha8Rng::seed_from_u64(name.as_str().len() as u64);
        let spread = dims.get(1).map_or(0.0, |width| 1.7 / (*width as f32).sqrt());
        let middle = if dims.len() == 1 { 1.0 } else { 0.0 };
        let values = (0..dims.iter().product()).map(|_| middle + spread * rng.random_range(-1.0_f32..1.0));
        Ok(match self.dtype {
            Dtype::Bf16 => values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
            _ => values.flat_map(f32::to_le_bytes).collect(),
        })
    }
}

/// User and system time of the process, from Linux' counters of a hundredth of a second.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("a Linux system");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = [11, 12].iter().map(|index| fields[*index].parse::<f64>().unwrap()).sum();
    ticks / 100.0
}

fn peak_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("a Linux system");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).map_or(0, |kib| kib.parse::<usize>().unwrap() << 10)
}
