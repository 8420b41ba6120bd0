use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::*;
use crate::nest::testing::{Memory, oracle};
use crate::tensor::Dtype;

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
}

/// Every folder with goldens below `$NESTPATCH_TOKENIZERS`, or those of the reference files.
fn goldens() -> Vec<(PathBuf, Golden)> {
    let named = std::env::var_os("NESTPATCH_TOKENIZERS").map(PathBuf::from);
    let Some(folder) = named.or_else(|| oracle("tokenizers")) else { return Vec::new() };
    let mut folders: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.join("golden.json").exists());
    folders.sort();
    assert!(!folders.is_empty());
    let read = |folder: PathBuf| {
        let text = std::fs::read(folder.join("golden.json")).unwrap();
        (folder, serde_json::from_slice(&text).unwrap())
    };
    folders.into_iter().map(read).collect()
}

#[test]
fn renders_and_encodes_as_transformers_does() {
    for (folder, golden) in goldens() {
        let chat = Chat::open(&folder, &TemplateSource::Checkpoint).unwrap();
        for case in &golden.encodings {
            assert_eq!(chat.encode(&case.text, true).unwrap(), case.ids, "{:?}", case.text);
            assert_eq!(chat.encode(&case.text, false).unwrap(), case.ids_no_special, "{:?}", case.text);
            assert_eq!(chat.decode(&case.ids).unwrap(), case.decoded_skip, "{:?}", case.text);
        }
        let (mut chats, mut errors) = (0, 0);
        for case in &golden.chats {
            // Prefill is not a template feature: transformers cuts the text after it was rendered.
            if case.kwargs.contains_key("continue_final_message") {
                println!("skipped: {}, {}: continues a message", folder.display(), case.conv);
            } else {
                check(&chat, case, &mut errors);
                chats += 1;
            }
        }
        println!("{}: {chats} conversations, {errors} of them errors", folder.display());
        assert!(chats >= 30 && golden.encodings.len() >= 10, "{}: {chats} conversations", folder.display());
    }
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
    for (folder, _) in goldens() {
        let name = folder.display();
        for system in [None, Some("Be brief.".to_owned())] {
            let options = ChatOptions { system: system.clone(), ..ChatOptions::default() };
            let chat = match Chat::with(&folder, &options) {
                Err(NestError::SystemPrompt { problem }) if system.is_some() => {
                    println!("{name} takes no system prompt: {problem}");
                    continue;
                }
                chat => chat.unwrap(),
            };
            let prompt = chat.encode_prompt("How do I bake bread?").unwrap();
            let answer = chat.encode_answer("How do I bake bread?", "I can not help.").unwrap();
            let stops: Vec<_> = answer.iter().filter(|id| chat.files.stops.contains(id)).collect();
            assert_eq!(stops, [answer.last().unwrap()], "{name}");
            assert!(chat.decode(&answer).unwrap().trim().ends_with("I can not help."), "{name}");
            let shown = chat.decode(&prompt).unwrap();
            assert!(shown.contains("How do I bake bread?") && !shown.contains("I can not help."), "{name}: {shown}");
            assert_eq!(shown.matches("Be brief.").count(), usize::from(system.is_some()), "{name}: {shown}");
            let bos = chat.files.special.get("bos_token").and_then(|bos| chat.files.tokenizer.token_to_id(bos));
            let count = prompt.iter().filter(|id| Some(**id) == bos).count();
            assert_eq!(count, usize::from(bos.is_some()), "{name}");
        }
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
    let endless = Chat::open(&folder, &TemplateSource::Text(endless.to_owned()));
    assert!(matches!(endless, Err(NestError::Template { problem, .. }) if problem.contains("fuel")));
    let broken = Chat::open(&folder, &TemplateSource::Text("{% if %}".to_owned()));
    assert!(matches!(broken, Err(NestError::Template { .. })));
}

#[derive(serde::Deserialize)]
struct Cases {
    date: Option<Timestamp>,
    tokens: BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    template: String,
    messages: Jinja,
    values: BTreeMap<String, Jinja>,
    add_generation_prompt: bool,
    rendered: Option<String>,
    error: Option<String>,
}

/// The cases of this repository, and those that `$NESTPATCH_TEMPLATES` names: `fixtures/templates/make.py` makes both.
#[test]
fn templates_do_what_they_do_in_transformers() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/templates/cases.json");
    let more = std::env::var_os("NESTPATCH_TEMPLATES").map(PathBuf::from);
    for path in [own].into_iter().chain(more) {
        let Cases { date, tokens, cases } = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        println!("{}: {} cases", path.display(), cases.len());
        assert!(cases.len() > 90 || date.is_some());
        let wrong: Vec<_> = cases.into_iter().filter_map(|case| wrong(date, &tokens, case)).collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// What is wrong with a rendering, if anything is.
fn wrong(date: Option<Timestamp>, tokens: &BTreeMap<String, String>, case: Case) -> Option<String> {
    let mut values = case.values;
    values.insert("messages".to_owned(), case.messages);
    values.insert("add_generation_prompt".to_owned(), case.add_generation_prompt.into());
    let mut environment = jinja::environment(date).unwrap();
    for (name, token) in tokens {
        environment.add_global(name.clone(), Jinja::from(token.as_str()));
    }
    let found = environment.render_str(&jinja::prepared(&case.template), Jinja::from_pairs(values));
    match (&found, &case.rendered, &case.error) {
        (Ok(found), Some(expected), None) if found == expected => None,
        (Err(_), None, Some(_)) => None,
        _ => Some(format!("{}: {found:?}, expected {:?} {:?}", case.name, case.rendered, case.error)),
    }
}

/// A checkpoint of the test network whose configuration is changed by `change`.
fn checkpoint(change: impl FnOnce(&Path, &mut Map<String, Value>)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    Memory::random(3, Dtype::F32).write(folder.path());
    let path = folder.path().join("tokenizer_config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(folder.path(), &mut config);
    std::fs::write(path, Value::Object(config).to_string()).unwrap();
    folder
}

fn opened(change: impl FnOnce(&Path, &mut Map<String, Value>)) -> Chat {
    Chat::open(checkpoint(change).path(), &TemplateSource::Checkpoint).unwrap()
}

/// Ids of the test network's tokens; see [`crate::nest::testing`].
fn encoded(chat: &Chat, prompt: &str) -> Vec<u32> {
    chat.encode_prompt(prompt).unwrap()
}

#[test]
fn templates_are_found_where_checkpoints_keep_them() {
    let named = |name: &str| format!("{{{{ '{name}' }}}} {{{{ messages[0].content }}}}");
    let chat = opened(|_, config| {
        config["chat_template"] =
            json!([{ "name": "tools", "template": named("w9") }, { "name": "default", "template": named("w5") }]);
    });
    assert_eq!(encoded(&chat, "w8"), [5, 8]);
    let write = |folder: &Path, name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    let chat =
        opened(|folder, _| write(folder, "chat_template.json", json!({ "chat_template": named("w6") }).to_string()));
    assert_eq!(encoded(&chat, "w8"), [6, 8]);
    let chat = opened(|folder, _| {
        write(folder, "chat_template.json", json!({ "chat_template": named("w6") }).to_string());
        write(folder, "chat_template.jinja", named("w7"));
    });
    assert_eq!(encoded(&chat, "w8"), [7, 8]);
    let folder =
        checkpoint(|_, config| config["chat_template"] = json!([{ "name": "tools", "template": named("w9") }]));
    let missing = Chat::open(folder.path(), &TemplateSource::Checkpoint);
    assert!(matches!(missing, Err(NestError::NoTemplate { .. })));
    let own = Chat::open(folder.path(), &TemplateSource::Text(named("w10"))).unwrap();
    assert_eq!(encoded(&own, "w8"), [10, 8]);
}

#[test]
fn special_tokens_come_from_wherever_they_are_named() {
    let shown = "{{ bos_token }}{{ image_token }} {{ messages[0].content }} {{ pad_token }}{{ eos_token }}";
    let chat = opened(|folder, config| {
        config.clear();
        config.insert("chat_template".to_owned(), shown.into());
        let map = json!({ "bos_token": { "content": "<bos>", "lstrip": false }, "eos_token": "<eos>" }).to_string();
        std::fs::write(folder.join("special_tokens_map.json"), map).unwrap();
    });
    assert_eq!(encoded(&chat, "w8"), [0, 8, 1]);
    let chat = opened(|folder, config| {
        config.extend([("chat_template".to_owned(), shown.into()), ("added_tokens_decoder".to_owned(), json!({}))]);
        config.insert("extra_special_tokens".to_owned(), json!({ "image_token": "w11" }));
        std::fs::write(folder.join("special_tokens_map.json"), r#"{"bos_token": "w30"}"#).unwrap();
    });
    assert_eq!(encoded(&chat, "w8"), [0, 11, 8, 1]);
    let chat = opened(|_, config| {
        config.extend([("chat_template".to_owned(), shown.into()), ("bos_token".to_owned(), Value::Null)]);
    });
    assert_eq!(encoded(&chat, "w8"), [8, 1]);
}

#[test]
fn tokens_of_the_configuration_are_added() {
    let token = |content: &str, rstrip: bool| {
        json!({
            "content": content, "lstrip": false, "rstrip": rstrip, "normalized": false, "single_word": false,
            "special": true,
        })
    };
    let chat = opened(|_, config| {
        let listed = json!({ "49": token("<two>", true), "48": token("<one>", false), "9": token("w9", false) });
        config.insert("added_tokens_decoder".to_owned(), listed);
        config.insert("pad_token".to_owned(), token("<pad>", false));
        config.insert("additional_special_tokens".to_owned(), json!(["<three>"]));
    });
    assert_eq!(chat.encode("w8<one>w8<two> w8<pad>", false).unwrap(), [8, 48, 8, 49, 8, 50]);
    assert_eq!(chat.encode("w9w9<three>", false).unwrap(), [9, 9, 51]);
    assert_eq!(chat.decode(&[8, 48, 51]).unwrap(), "w8");
}

#[test]
fn a_template_for_content_parts_gets_them() {
    let parts = "{% for m in messages %}{{ m.role | replace('user', 'w6') }} {% for part in m['content'] | \
                 selectattr('type', 'equalto', 'text') %}{{ part['text'] }} {% endfor %}{% endfor %}";
    let chat = opened(|_, config| config["chat_template"] = parts.into());
    assert_eq!(encoded(&chat, "w8 w9"), [6, 8, 9]);
    let folder = checkpoint(|_, config| config["chat_template"] = "{{ messages | length }}".into());
    let dropped = Chat::open(folder.path(), &TemplateSource::Checkpoint).unwrap_err();
    assert!(dropped.to_string().contains("leaves out the user's message"), "{dropped}");
}

/// As transformers' processor does: what it adds, BOS here, unless the template has begun with it.
#[test]
fn a_processor_adds_bos_where_the_template_does_not() {
    let bos = |folder: &Path| {
        let path = folder.join("tokenizer.json");
        let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        tokenizer["post_processor"] = json!({
            "type": "TemplateProcessing", "pair": [],
            "single": [{ "SpecialToken": { "id": "<bos>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "special_tokens": { "<bos>": { "id": "<bos>", "ids": [0], "tokens": ["<bos>"] } },
        });
        std::fs::write(path, tokenizer.to_string()).unwrap();
    };
    let without = "{{ messages[0].content }}";
    let with = "{{ bos_token }}{{ messages[0].content }}";
    for (template, processor, expected) in
        [(without, true, [0, 8].as_slice()), (with, true, &[0, 8]), (without, false, &[8]), (with, false, &[0, 8])]
    {
        let chat = opened(|folder, config| {
            bos(folder);
            config["chat_template"] = template.into();
            if processor {
                std::fs::write(folder.join("processor_config.json"), "{}").unwrap();
            }
        });
        assert_eq!(encoded(&chat, "w8"), expected, "{template} {processor}");
        let plain = Chat { template: None, ..chat };
        assert_eq!(encoded(&plain, "w8"), [0, 8]);
    }
}

#[test]
fn a_tokenizer_in_another_form_is_refused_with_a_remedy() {
    for (other, name) in
        [("tokenizer.model", "tokenizer.model"), ("vocab.json", "vocab.json"), ("x.bin", "no tokenizer")]
    {
        let folder = checkpoint(|folder, _| {
            std::fs::rename(folder.join("tokenizer.json"), folder.join(other)).unwrap();
        });
        let error = Chat::open(folder.path(), &TemplateSource::Checkpoint).unwrap_err();
        assert!(error.to_string().ends_with(&format!("expected tokenizer.json, found {name}")), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("save_pretrained")));
    }
}

#[test]
fn a_system_prompt_goes_before_every_prompt() {
    let template = "{% for m in messages %}{{ {'system': 'w5', 'user': 'w6', 'assistant': 'w7'}[m.role] }} {{ m.content }} {% endfor %}";
    let with = |template: &str, system: &str| {
        let folder = checkpoint(|_, config| config["chat_template"] = template.into());
        Chat::with(folder.path(), &ChatOptions { system: Some(system.to_owned()), ..ChatOptions::default() })
    };
    let chat = with(template, "w20 w21").unwrap();
    assert_eq!(encoded(&chat, "w8"), [5, 20, 21, 6, 8]);
    assert_eq!(chat.encode_answer("w8", "w9").unwrap(), [7, 9, 1]);
    let refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ messages[0].content }}";
    let ignores = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}";
    for (template, words) in [(refuses, "no system role"), (ignores, "leaves it out")] {
        let error = with(template, "w20").unwrap_err();
        assert!(matches!(&error, NestError::SystemPrompt { problem } if problem.contains(words)), "{error}");
        assert!(error.hint().is_some());
    }
    let folder = checkpoint(|_, _| ());
    let options = ChatOptions { system: Some("w20".to_owned()), template: TemplateSource::Plain, date: None };
    assert!(matches!(Chat::with(folder.path(), &options), Err(NestError::SystemPrompt { .. })));
}

#[test]
fn todays_date_is_what_one_says() {
    let asks = "{{ strftime_now('%d') | replace('24', 'w24') }} {{ messages[0].content }}";
    let folder = checkpoint(|_, config| config["chat_template"] = asks.into());
    let error = Chat::open(folder.path(), &TemplateSource::Checkpoint).unwrap_err();
    assert!(error.hint().is_some_and(|hint| hint.contains("--date")), "{error}");
    let date = Some("2026-11-24T00:00:00Z".parse().unwrap());
    let chat = Chat::with(folder.path(), &ChatOptions { date, ..ChatOptions::default() }).unwrap();
    assert_eq!(encoded(&chat, "w8"), [24, 8]);
    let falls_back = "{% if strftime_now is defined %}w5 {% endif %}{{ messages[0].content }}";
    let chat = opened(|_, config| config["chat_template"] = falls_back.into());
    assert_eq!(encoded(&chat, "w8"), [8]);
}

#[test]
fn an_answer_ends_where_any_configuration_says() {
    let chat = opened(|folder, _| {
        std::fs::write(folder.join("generation_config.json"), r#"{"eos_token_id": [1, 30]}"#).unwrap();
        std::fs::write(folder.join("config.json"), r#"{"text_config": {"eos_token_id": 31}}"#).unwrap();
    });
    assert_eq!(chat.stops().collect::<Vec<_>>(), [1, 30, 31]);
}
