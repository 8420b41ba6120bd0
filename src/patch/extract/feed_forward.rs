//! Which tensors NeST edits: the projections of feed-forward blocks, by their names.

use crate::tensor::TensorName;

/// Parts of a name between dots that say "feed-forward block".
const BLOCKS: [&str; 10] = [
    "mlp",
    "feed_forward",
    "ffn",
    "block_sparse_moe",
    "experts",
    "shared_expert",
    "shared_experts",
    "shared_mlp",
    "fc1",
    "fc2",
];
/// Parts that say "which expert", which is no projection.
const ROUTERS: [&str; 4] = ["gate", "router", "shared_expert_gate", "expert_gate"];

/// Whether the name is that of a feed-forward projection: one of its parts between dots names such a block, and none a
/// router.
pub(super) fn is_feed_forward(name: &TensorName) -> bool {
    let among = |words: &[&str]| name.as_str().split('.').any(|part| words.contains(&part));
    among(&BLOCKS) && !among(&ROUTERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projections_are_told_from_everything_around_them() {
        let is = |name: &str| is_feed_forward(&TensorName::new(name).unwrap());
        for name in [
            "model.layers.0.mlp.gate_proj.weight",
            "model.layers.3.mlp.down_proj.weight",
            "transformer.h.0.mlp.c_fc.weight",
            "model.layers.0.feed_forward.w1.weight",
            "model.layers.0.block_sparse_moe.experts.7.w2.weight",
            "model.layers.0.mlp.experts.gate_up_proj",
            "model.layers.0.mlp.shared_expert.up_proj.weight",
            "model.layers.0.block_sparse_moe.input_linear.weight",
            "model.layers.0.shared_mlp.input_linear.weight",
            "model.decoder.layers.0.fc1.weight",
        ] {
            assert!(is(name), "{name}");
        }
        for name in [
            "model.embed_tokens.weight",
            "lm_head.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.mlp.gate.weight",
            "model.layers.0.block_sparse_moe.gate.weight",
            "model.layers.0.feed_forward.router.weight",
            "model.layers.0.block_sparse_moe.router.layer.weight",
            "model.layers.0.mlp.shared_expert_gate.weight",
            "model.mlpx.weight",
        ] {
            assert!(!is(name), "{name}");
        }
    }
}
