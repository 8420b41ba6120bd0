use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::checkpoint::Checkpoint;
use crate::decoder::{Batch, Decoder};
use crate::nest::testing::{self, Memory, VOCABULARY};
use crate::tensor::Dtype;

const SOME: GenerateParams = GenerateParams { max_tokens: 12, batch: 3 };

fn answers(weights: &Memory, prompts: &[Vec<u32>], stops: &[u32], params: GenerateParams) -> Vec<Answer> {
    let decoder = testing::decoder(weights);
    let generator = Generator::new(&decoder);
    let mut heard = 0;
    let answers = generator.answer(prompts, stops, &params.check().unwrap(), &mut |count| heard += count).unwrap();
    assert_eq!(heard, prompts.len());
    answers
}

fn prompts(count: usize) -> Vec<Vec<u32>> {
    let mut generator = ChaCha8Rng::seed_from_u64(1);
    let prompt = |index: usize| (0..3 + index % 4).map(|_| generator.random_range(4..VOCABULARY as u32)).collect();
    (0..count).map(prompt).collect()
}

/// The plain twin: our own decoder, one prompt at a time, the whole sequence again for every token.
fn plain(decoder: &Decoder, prompt: &[u32], stops: &[u32], max_tokens: usize) -> Answer {
    let mut answer = Answer::default();
    while answer.tokens.len() < max_tokens && !answer.stopped {
        let logits = decoder.logits(&Batch::new([[prompt, &answer.tokens].concat()]).unwrap(), None).unwrap();
        let logits: Vec<Vec<f32>> = logits.to_vec2().unwrap();
        let scores = logits.last().unwrap().iter().enumerate();
        let token = scores.max_by(|left, right| left.1.total_cmp(right.1)).unwrap().0 as u32;
        answer.tokens.push(token);
        answer.stopped = stops.contains(&token);
    }
    answer
}

#[test]
fn batches_of_many_lengths_equal_the_plain_twin() {
    let weights = Memory::random(3, Dtype::F32);
    let prompts = prompts(14);
    let free = answers(&weights, &prompts, &[], SOME);
    // A token that some answers hold and others do not makes some stop early.
    let stop = free[0].tokens[4];
    let found = answers(&weights, &prompts, &[stop], SOME);
    let decoder = testing::decoder(&weights);
    for (prompt, found) in prompts.iter().zip(&found) {
        assert_eq!(found, &plain(&decoder, prompt, &[stop], 12));
    }
    assert!(found.iter().any(|answer| answer.stopped) && found.iter().any(|answer| !answer.stopped));
    assert!(found.iter().filter(|answer| answer.stopped).all(|answer| answer.tokens.last() == Some(&stop)));
}

#[test]
fn the_last_position_still_predicts() {
    let weights = Memory::random(3, Dtype::Bf16);
    let prompt = vec![5; 60];
    let params = GenerateParams { max_tokens: 100, batch: 1 };
    // 64 positions: tokens 61 to 64 run, each predicts one, and the prompt predicts one.
    assert_eq!(answers(&weights, &[prompt], &[], params)[0].tokens.len(), 5);
}

#[test]
fn prompts_that_cannot_run_are_named() {
    let weights = Memory::random(3, Dtype::F32);
    let decoder = testing::decoder(&weights);
    let generator = Generator::new(&decoder);
    let answer = |prompt: Vec<u32>| generator.answer(&[vec![4], prompt], &[], &SOME.check().unwrap(), &mut |_| ());
    assert!(matches!(answer(vec![]), Err(EvalError::Prompt { index: 1, expected: 64, found: 0 })));
    assert!(matches!(answer(vec![4; 65]), Err(EvalError::Prompt { index: 1, expected: 64, found: 65 })));
    assert!(matches!(answer(vec![48]), Err(EvalError::Token { index: 1, expected: 48, found: 48 })));
    assert!(matches!(
        GenerateParams { max_tokens: 0, batch: 1 }.check(),
        Err(EvalError::OutOfRange { name: "max tokens", .. })
    ));
}

#[test]
fn greedy_tokens_equal_those_of_transformers() {
    let mut checked = 0;
    for (model, count, name) in [
        ("llama_tied", 16, "greedy16"),
        ("llama_tied_bf16", 16, "greedy16"),
        ("llama3_untied_sharded", 16, "greedy16"),
        ("mistral_sliding", 16, "greedy16"),
        ("qwen2", 16, "greedy16"),
        ("qwen3_bf16", 16, "greedy16"),
        ("phi3_fused", 16, "greedy16"),
        ("gemma", 16, "greedy16"),
        ("gemma2", 16, "greedy16"),
        ("gemma3_text", 16, "greedy16"),
        ("gemma3_mm", 16, "greedy16"),
        ("qwen3_vl", 16, "greedy16"),
        ("stories260K", 64, "greedy64"),
        ("stories260K_bf16", 64, "greedy64"),
    ] {
        let Some(folder) = testing::oracle(&format!("models/{model}")) else { continue };
        let checkpoint = Checkpoint::open(&folder.join("ckpt")).unwrap();
        let decoder = Decoder::from_checkpoint(&checkpoint, &candle_core::Device::Cpu).unwrap();
        let generator = Generator::new(&decoder);
        let bytes = std::fs::read(folder.join("ref.safetensors")).unwrap();
        let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tokens = |name: &str| -> Option<Vec<u32>> {
            let data = reference.tensor(name).ok()?.data().to_vec();
            Some(data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect())
        };
        for prompt in 0..4 {
            let Some(expected) = tokens(&format!("p{prompt}.{name}")) else { continue };
            let input = tokens(&format!("p{prompt}.input_ids")).unwrap();
            let params = GenerateParams { max_tokens: count, batch: 1 }.check().unwrap();
            let found = generator.answer(&[input], &[], &params, &mut |_| ()).unwrap();
            assert_eq!(found[0].tokens, expected, "{model}, prompt {prompt}");
            checked += 1;
        }
    }
    println!("{checked} greedy answers compared");
}
