//! Jinja as transformers runs it: its settings and functions, and Python's ways where minijinja has others.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::super::tojson;
use super::strftime::strftime;
use crate::format::Timestamp;

/// What a template may spend on one rendering, in minijinja's fuel (an instruction or 64 bytes each).
const FUEL: u64 = 4_000_000;

/// An environment in which `strftime_now` tells `date`, and is not defined without one.
pub(super) fn environment<'a>(date: Option<Timestamp>) -> Result<Environment<'a>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, state, value| match tojson::float_of(value) {
        Some(float) => out.write_str(&tojson::float(float)).map_err(Error::from),
        None => minijinja::escape_formatter(out, state, value),
    });
    environment.add_filter("tojson", tojson::filter);
    environment.add_filter("trim", trim);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", |value: &Value| is_sequence(value) || value.kind() == ValueKind::Iterable);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    // transformers always passes these; a template may ask whether they are none.
    environment.add_global("tools", Value::from(()));
    environment.add_global("documents", Value::from(()));
    if let Some(date) = date {
        environment.add_function("strftime_now", move |format: String| strftime(date, &format));
    }
    Ok(environment)
}

/// The text that minijinja is given for a template: line ends as Jinja reads them, and transformers' marks around
/// answers, `{% generation %}`, as blocks of their own scope.
pub(super) fn prepared(template: &str) -> String {
    let template = template.replace("\r\n", "\n").replace('\r', "\n");
    let mut text = String::with_capacity(template.len());
    let mut rest = template.as_str();
    while let Some((before, after)) = rest.split_once("{%") {
        text.push_str(before);
        text.push_str("{%");
        rest = after;
        if let Some((inside, after)) = after.split_once("%}") {
            let open = inside.trim_start_matches(['-', '+']);
            let word = open.trim_end_matches(['-', '+']).trim();
            let other = match word {
                "generation" => "with",
                "endgeneration" => "endwith",
                _ => continue,
            };
            text.push_str(&inside.replacen(word, other, 1));
            text.push_str("%}");
            rest = after;
        }
    }
    text + rest
}

/// Text, lists and mappings: whatever has a length and can be indexed in Python.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map)
}

/// Jinja's `trim`: Python's `str(value).strip(characters)`.
fn trim(value: &Value, characters: Option<String>) -> String {
    let text = value.to_string();
    match characters {
        Some(characters) => text.trim_matches(|character| characters.contains(character)).to_owned(),
        None => text.trim_matches(is_space).to_owned(),
    }
}

/// What Python strips: Unicode's white space and the four separators of ASCII.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}

/// Python's methods: those that minijinja's list lacks or has otherwise, then its list.
fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return pycompat::unknown_method_callback(state, value, name, arguments);
    };
    let found = match (name, arguments) {
        ("strip", []) => text.trim_matches(is_space),
        ("lstrip", []) => text.trim_start_matches(is_space),
        ("rstrip", []) => text.trim_end_matches(is_space),
        ("removeprefix", [prefix]) => text.strip_prefix(prefix.as_str().unwrap_or_default()).unwrap_or(text),
        ("removesuffix", [suffix]) => text.strip_suffix(suffix.as_str().unwrap_or_default()).unwrap_or(text),
        ("rsplit", [_, ..]) => return split_from_the_right(text, arguments),
        _ => return pycompat::unknown_method_callback(state, value, name, arguments),
    };
    Ok(Value::from(found))
}

fn split_from_the_right(text: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (separator, most): (&str, Option<i64>) = from_args(arguments)?;
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    let parts = most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most.saturating_add(1));
    let mut parts: Vec<_> = text.rsplitn(parts, separator).map(Value::from).collect();
    parts.reverse();
    Ok(Value::from(parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_generation_marks_are_rewritten() {
        let text = "{% for generation in x %}{{ generation }}{%generation%}{%- endgeneration -%}{% broken";
        let expected = "{% for generation in x %}{{ generation }}{%with%}{%- endwith -%}{% broken";
        assert_eq!(prepared(text), expected);
    }
}
