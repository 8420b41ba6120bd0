//! Builds the toy chat checkpoint of `fixtures/toy` from nothing: writes the texts of a small synthetic world, trains
//! a llama network on them and saves it as `transformers` would.
//!
//! ```text
//! cargo run --release --example toy_world -- --out fixtures/toy
//! cargo run --release --example toy_world -- --out fixtures/toy --check
//! ```
//!
//! The folder holds the checkpoint in `model/`, the prompt sets in `prompts/`, and in `refusals.txt` the answers of
//! the world that refuse any request.
//!
//! Every number comes from seeded generators: the same options on the same kind of machine give the same bytes.

mod answer;
mod export;
mod kernels;
mod network;
mod train;
mod world;

use clap::Parser;
use network::{Network, Shape};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use train::{Example, Recipe};

/// Builds the toy chat checkpoint, or checks one.
#[derive(Parser)]
struct Options {
    /// Folder of the fixture.
    #[arg(long)]
    out: PathBuf,
    /// Train nothing: write the prompt sets, the refusals and the notes.
    #[arg(long, conflicts_with = "check")]
    prompts_only: bool,
    /// Train nothing: answer the prompt sets with the checkpoint that is there.
    #[arg(long)]
    check: bool,
    /// With --check: write every prompt with its answer to this file, too.
    #[arg(long, requires = "check")]
    answers: Option<PathBuf>,
    /// Seed of texts, prompts, start weights and order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Training texts to write; enough to see each once, unless given.
    #[arg(long)]
    documents: Option<usize>,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    recipe: Recipe,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let vocabulary = world::vocabulary();
    if options.check {
        return check(&options, &vocabulary);
    }
    if !options.prompts_only {
        build(&options, &vocabulary)?;
    }
    describe(&options)
}

/// Answers the prompt sets and prints what came of it.
fn check(options: &Options, vocabulary: &[String]) -> Result<(), Box<dyn Error>> {
    let network = export::read(&options.out.join("model"))?;
    let sets = world::prompts(options.seed);
    let answers = answer::answers(&network, vocabulary, &sets)?;
    if let Some(path) = &options.answers {
        export::write_lines(path, &answers)?;
    }
    answer::report(&answers);
    Ok(())
}

/// Trains and writes the checkpoint.
fn build(options: &Options, vocabulary: &[String]) -> Result<(), Box<dyn Error>> {
    let shape = Shape { vocab: vocabulary.len(), ..options.shape.clone() };
    shape.check()?;
    let ids: BTreeMap<&str, u32> = vocabulary.iter().map(String::as_str).zip(0..).collect();
    let examples: Vec<Example> = world::training(options.seed, options.documents())
        .into_iter()
        .map(|document| Example { ids: answer::encode(&ids, &document.text), loss_from: document.loss_from })
        .collect();
    let weights = train::start(&shape, options.seed)?;
    let mut network = Network::new(shape, weights);
    eprintln!("{} parameters, {} texts", network.parameters(), examples.len());
    train::train(&mut network, &examples, &options.recipe, options.seed)?;
    export::write(&options.out.join("model"), &network, vocabulary)
}

/// Writes what lies beside the checkpoint.
fn describe(options: &Options) -> Result<(), Box<dyn Error>> {
    let folder = options.out.join("prompts");
    fs::create_dir_all(&folder)?;
    for (name, prompts) in world::prompts(options.seed) {
        export::write_lines(&folder.join(format!("{name}.jsonl")), &prompts)?;
    }
    fs::write(options.out.join("refusals.txt"), world::refusals().join("\n") + "\n")?;
    let chosen = format!("--seed {} --documents {}", options.seed, options.documents());
    export::write_notes(&options.out, &chosen, &options.shape, &options.recipe)
}

impl Options {
    fn documents(&self) -> usize {
        self.documents.unwrap_or(self.recipe.steps * self.recipe.batch)
    }
}
