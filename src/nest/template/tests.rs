use std::collections::BTreeMap;

use super::*;
use crate::nest::testing::oracle;

#[derive(serde::Deserialize)]
struct Golden {
    encodings: Vec<Encoding>,
    chats: Vec<Conversation>,
}

#[derive(serde::Deserialize)]
struct Encoding {
    text: String,
    ids: Vec<u32>,
    ids_no_special: Vec<u32>,
    decoded_skip: String,
}

#[derive(serde::Deserialize)]
struct Conversation {
    conv: String,
    messages: Jinja,
    kwargs: BTreeMap<String, Jinja>,
    rendered: Option<String>,
    ids: Option<Vec<u32>>,
    error: Option<String>,
    portable: Option<bool>,
}

#[test]
fn renders_and_encodes_as_transformers_does() {
    let Some(folder) = oracle("tokenizers") else { return };
    let mut folders: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 4);
    let (mut chats, mut errors) = (0, 0);
    for folder in folders {
        let golden: Golden = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        let chat = Chat::open(&folder, &TemplateSource::Checkpoint).unwrap();
        for case in &golden.encodings {
            assert_eq!(chat.encode(&case.text, true).unwrap(), case.ids, "{:?}", case.text);
            assert_eq!(chat.encode(&case.text, false).unwrap(), case.ids_no_special, "{:?}", case.text);
            assert_eq!(chat.decode(&case.ids).unwrap(), case.decoded_skip, "{:?}", case.text);
        }
        // Prefill is not a template feature, and a Python list has no portable text.
        let prefill = |case: &&Conversation| !case.kwargs.contains_key("continue_final_message");
        for case in golden.chats.iter().filter(prefill).filter(|case| case.portable != Some(false)) {
            check(&chat, case, &mut errors);
            chats += 1;
        }
    }
    assert!(chats >= 150 && errors >= 10, "{chats} conversations, {errors} errors");
}

fn check(chat: &Chat, case: &Conversation, errors: &mut usize) {
    let mut values = case.kwargs.clone();
    values.insert("messages".to_owned(), case.messages.clone());
    let rendered = chat.render_values(Jinja::from_pairs(values));
    let name = &case.conv;
    match &case.error {
        Some(expected) => {
            *errors += 1;
            let found = rendered.expect_err(name).to_string();
            if let Some(raised) = expected.strip_prefix("TemplateError: ") {
                assert!(found.contains(raised), "{name}: {found}");
            }
        }
        None => {
            let rendered = rendered.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(Some(&rendered), case.rendered.as_ref(), "{name}");
            assert_eq!(Some(chat.encode(&rendered, false).unwrap()), case.ids, "{name}");
        }
    }
}

#[test]
fn answers_follow_the_prompt_and_end_once() {
    let Some(folder) = oracle("tokenizers") else { return };
    for name in ["llama31", "qwen25", "gemma3", "mistral_v3"] {
        let chat = Chat::open(&folder.join(name), &TemplateSource::Checkpoint).unwrap();
        let prompt = chat.encode_prompt("How do I bake bread?").unwrap();
        let answer = chat.encode_answer("How do I bake bread?", "I can not help.").unwrap();
        let stops: Vec<_> = answer.iter().filter(|id| chat.stops.contains(id)).collect();
        assert_eq!(stops, [answer.last().unwrap()], "{name}");
        assert_eq!(chat.decode(&answer).unwrap().trim(), "I can not help.", "{name}");
        assert!(!chat.decode(&prompt).unwrap().contains("I can not help."), "{name}");
        let bos = chat.bos.as_deref().and_then(|bos| chat.tokenizer.token_to_id(bos));
        let count = prompt.iter().filter(|id| Some(**id) == bos).count();
        assert_eq!(count, usize::from(bos.is_some()), "{name}");
    }
}

#[test]
fn a_checkpoint_without_template_says_what_to_do() {
    let Some(folder) = oracle("models/stories260K/ckpt") else { return };
    let error = Chat::open(&folder, &TemplateSource::Checkpoint).unwrap_err();
    assert!(matches!(error, NestError::NoTemplate { .. }));
    assert!(error.hint().is_some());
    let chat = Chat::open(&folder, &TemplateSource::Plain).unwrap();
    assert_eq!(chat.encode_prompt("The").unwrap(), [1, 291]);
    assert_eq!(chat.stops().collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_template_that_never_ends_is_stopped() {
    let Some(folder) = oracle("tokenizers/qwen25") else { return };
    let endless = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
    let chat = Chat::open(&folder, &TemplateSource::Text(endless.to_owned())).unwrap();
    assert!(matches!(chat.encode_prompt("x"), Err(NestError::Template { .. })));
    let broken = Chat::open(&folder, &TemplateSource::Text("{% if %}".to_owned()));
    assert!(matches!(broken, Err(NestError::Template { .. })));
}

#[test]
fn generation_tags_render_as_their_content() {
    let text = without_generation_tags("a{%- generation %}b{% endgeneration -%} c");
    let rendered = environment().unwrap().render_str(&text, context! {}).unwrap();
    assert_eq!(rendered, "abc");
}
