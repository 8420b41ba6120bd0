//! Folds and unfolds seeded random weights until as many as asked for have come back, and counts those that did not.
//!
//!     cargo run --release --example round_trip -- 1000000000
//!
//! Weights and deltas are of every element type: Gaussian as in a model, any bits, cancelling, absorbed, subnormal, and
//! near overflow. Rows that the format refuses to fold (a result that is not finite) are counted and not folded.

use std::num::NonZero;
use std::process::ExitCode;
use std::thread;

use nestpatch::fold::{fold_row, residual_row, unfold_row};
use nestpatch::format::{Deltas, Edit, EditParts, Edits, Layout, Residual, ResidualBuilder};
use nestpatch::tensor::{Dtype, Shape, TensorName};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const COLUMNS: usize = 2048;
const ROWS: usize = 64;
const DTYPES: [Dtype; 3] = [Dtype::Bf16, Dtype::F16, Dtype::F32];

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Default)]
struct Counts {
    weights: u64,
    wrong: u64,
    subtraction_wrong: u64,
    refused_rows: u64,
}

fn main() -> Result<ExitCode, Failure> {
    let wanted: u64 = std::env::args().nth(1).as_deref().unwrap_or("100000000").parse()?;
    let threads = thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let runs = thread::scope(|scope| {
        let start = |seed| scope.spawn(move || run(seed, wanted.div_ceil(threads)));
        (0..threads).map(start).collect::<Vec<_>>().into_iter().map(|run| run.join()).collect::<Vec<_>>()
    });
    let mut total = Counts::default();
    for run in runs {
        let counts = run.map_err(|_| "a thread failed")??;
        total.weights += counts.weights;
        total.wrong += counts.wrong;
        total.subtraction_wrong += counts.subtraction_wrong;
        total.refused_rows += counts.refused_rows;
    }
    let Counts { weights, wrong, subtraction_wrong, refused_rows } = total;
    println!("{weights} weights folded and unfolded, {wrong} wrong ({refused_rows} rows refused)");
    println!("subtracting alone would have left {subtraction_wrong} wrong");
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(seed: u64, wanted: u64) -> Result<Counts, Failure> {
    let (mut rng, mut counts) = (ChaCha8Rng::seed_from_u64(seed), Counts::default());
    while counts.weights < wanted {
        for dtype in DTYPES {
            batch(dtype, &mut rng, &mut counts)?;
        }
    }
    Ok(counts)
}

/// Some rows of one type, with the residual that a patch of them would carry.
fn batch(dtype: Dtype, rng: &mut ChaCha8Rng, counts: &mut Counts) -> Result<(), Failure> {
    let (mut rows, mut builder) = (Vec::new(), ResidualBuilder::new());
    while rows.len() < ROWS {
        let (old, delta) = row(dtype, rng);
        let mut new = old.clone();
        if fold_row(dtype, &mut new, &delta).is_err() {
            counts.refused_rows += 1;
            continue;
        }
        residual_row(dtype, &old, &new, &delta, &mut builder)?;
        rows.push((old, new, delta));
    }
    let edits = edits(dtype)?;
    // As it is read from a file.
    let residual = Residual::from_bytes(&edits, &builder.finish(&edits)?.to_bytes())?;
    let edit = edits.iter().next().ok_or("no edit")?;
    for ((old, mut new, delta), residual) in rows.into_iter().zip(residual.rows(0, edit)) {
        let mut subtracted = new.clone();
        let minus: Vec<f32> = delta.iter().map(|delta| -delta).collect();
        // Subtracting may even overflow; then all of the row counts as wrong.
        let subtracted = fold_row(dtype, &mut subtracted, &minus).map_or(vec![0xff; old.len()], |_| subtracted);
        unfold_row(dtype, &mut new, &delta, residual)?;
        counts.weights += COLUMNS as u64;
        counts.wrong += differing(dtype, &old, &new);
        counts.subtraction_wrong += differing(dtype, &old, &subtracted);
    }
    Ok(())
}

fn differing(dtype: Dtype, one: &[u8], other: &[u8]) -> u64 {
    let elements = one.chunks(dtype.size()).zip(other.chunks(dtype.size()));
    elements.filter(|(one, other)| one != other).count() as u64
}

/// A row's bytes and a delta, of one of several kinds.
fn row(dtype: Dtype, rng: &mut ChaCha8Rng) -> (Vec<u8>, Vec<f32>) {
    let kind = rng.random_range(0..5);
    let (mut bytes, mut deltas) = (Vec::with_capacity(COLUMNS * dtype.size()), Vec::with_capacity(COLUMNS));
    for _ in 0..COLUMNS {
        let weight = match kind {
            0 | 1 => gaussian(rng) * 0.02,
            2 => f32::from_bits(rng.random()),
            3 => gaussian(rng) * 1e-38,
            _ => gaussian(rng) * if dtype == Dtype::F16 { 2e4 } else { 1e38 },
        };
        let cell = encode(dtype, weight);
        let weight = decode(dtype, &cell);
        let delta = match rng.random_range(0..8) {
            0 => 0.0,
            1 => -weight,
            2 => weight * 0.003,
            3 => gaussian(rng),
            _ => gaussian(rng) * 0.02,
        };
        let delta = decode(Dtype::Bf16, &encode(Dtype::Bf16, delta)) + 0.0;
        bytes.extend(if weight.is_finite() { cell } else { encode(dtype, -0.0) });
        deltas.push(if delta.is_finite() { delta } else { 0.0 });
    }
    (bytes, deltas)
}

/// Near enough: the sum of twelve uniform numbers.
fn gaussian(rng: &mut ChaCha8Rng) -> f32 {
    (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0
}

fn encode(dtype: Dtype, value: f32) -> Vec<u8> {
    match dtype {
        Dtype::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::F32 => value.to_le_bytes().to_vec(),
    }
}

fn decode(dtype: Dtype, cell: &[u8]) -> f32 {
    let half = || cell.first_chunk().copied().unwrap_or_default();
    match dtype {
        Dtype::Bf16 => half::bf16::from_le_bytes(half()).to_f32(),
        Dtype::F16 => half::f16::from_le_bytes(half()).to_f32(),
        Dtype::F32 => f32::from_le_bytes(cell.first_chunk().copied().unwrap_or_default()),
    }
}

fn edits(dtype: Dtype) -> Result<Edits, Failure> {
    let edit = Edit::new(EditParts {
        tensor: TensorName::new("w")?,
        dtype,
        shape: Shape::new([ROWS as u64, COLUMNS as u64])?,
        layout: Layout::Rows,
        rows: (0..ROWS as u32).collect(),
        clusters: vec![0; ROWS],
        // Which deltas makes no difference to the shape of a residual.
        deltas: Deltas::new(dtype, COLUMNS, vec![0.0; COLUMNS])?,
    })?;
    Ok(Edits::new(vec![edit])?)
}
