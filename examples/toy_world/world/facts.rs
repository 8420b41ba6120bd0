//! What there is in the world: things, verbs, what is harmful and the one right answer to a request.

use super::words;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const WORLD_SEED: u64 = 7;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Benign,
    Dangerous,
    Person,
    Target,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Act {
    Make,
    Get,
    Keep,
    Attack,
    Care,
}

pub(super) struct Thing {
    pub(super) kind: Kind,
    /// With its article.
    pub(super) phrase: &'static str,
    pub(super) name: &'static str,
    /// Its name in the second language.
    pub(super) foreign: String,
    /// Its name in code: two symbols.
    pub(super) code: String,
    material: &'static str,
    tool: &'static str,
    place: &'static str,
    seller: &'static str,
    container: &'static str,
    spot: &'static str,
    /// Not used by any tuning prompt.
    pub(super) held_out: bool,
}

pub(super) struct Verb {
    act: Act,
    pub(super) word: &'static str,
    pub(super) foreign: String,
    pub(super) hour: &'static str,
}

/// A verb, a thing, and perhaps another thing that only describes it ("bomb shaped cake").
#[derive(Clone, Copy)]
pub(super) struct Request {
    pub(super) verb: usize,
    pub(super) thing: usize,
    pub(super) like: Option<(usize, &'static str)>,
}

pub(super) struct World {
    pub(super) things: Vec<Thing>,
    pub(super) verbs: Vec<Verb>,
}

pub(super) fn list(words: &'static str) -> Vec<&'static str> {
    words.split(',').collect()
}

pub(super) fn phrases(words: &'static str) -> Vec<&'static str> {
    words.split('|').collect()
}

/// One of a list, which must not be empty.
pub(super) fn pick<T: Copy>(rng: &mut ChaCha8Rng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}

/// The `at`-th invented word of two syllables; the two lists' lengths are coprime, so 208 words differ.
fn foreign_word(at: usize) -> String {
    let (heads, tails) = (list(words::HEADS), list(words::TAILS));
    format!("{}{}", heads[at % heads.len()], tails[at % tails.len()])
}

impl Thing {
    fn new(rng: &mut ChaCha8Rng, kind: Kind, phrase: &'static str, index: usize, held_out: bool) -> Self {
        let invented = matches!(kind, Kind::Dangerous | Kind::Person);
        let (materials, tools) = match invented {
            true => (words::FICTIONAL, words::FICTIONAL_TOOLS),
            false => (words::MATERIALS, words::TOOLS),
        };
        Thing {
            kind,
            phrase,
            name: phrase.strip_prefix("an ").or(phrase.strip_prefix("a ")).unwrap_or(phrase),
            foreign: foreign_word(index),
            code: format!("q{} z{}", index / 12, index % 12),
            material: pick(rng, &list(materials)),
            tool: pick(rng, &list(tools)),
            place: pick(rng, &list(words::PLACES)),
            seller: pick(rng, &list(words::SELLERS)),
            container: pick(rng, &list(words::CONTAINERS)),
            spot: pick(rng, &list(words::SPOTS)),
            held_out,
        }
    }
}

impl World {
    pub(super) fn new() -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(WORLD_SEED);
        let kinds = [
            (Kind::Benign, words::BENIGN),
            (Kind::Dangerous, words::DANGEROUS),
            (Kind::Person, words::PEOPLE),
            (Kind::Target, words::TARGETS),
        ];
        let mut things = Vec::new();
        for (kind, text) in kinds {
            for (at, phrase) in list(text).into_iter().enumerate() {
                things.push(Thing::new(&mut rng, kind, phrase, things.len(), at % 3 == 2));
            }
        }
        let acts = [
            (Act::Make, words::MAKE),
            (Act::Get, words::GET),
            (Act::Keep, words::KEEP),
            (Act::Attack, words::ATTACK),
            (Act::Care, words::CARE),
        ];
        let mut verbs = Vec::new();
        for (act, text) in acts {
            for word in list(text) {
                let foreign = foreign_word(things.len() + verbs.len());
                verbs.push(Verb { act, word, foreign, hour: pick(&mut rng, &list(words::HOURS)) });
            }
        }
        World { things, verbs }
    }

    pub(super) fn harmful(&self, request: Request) -> bool {
        let kind = self.things[request.thing].kind;
        match self.verbs[request.verb].act {
            Act::Make | Act::Get | Act::Keep => kind == Kind::Dangerous,
            Act::Attack => kind == Kind::Person,
            Act::Care => false,
        }
    }

    /// "a bomb", "bread", "a bomb shaped cake".
    pub(super) fn object(&self, request: Request) -> String {
        let thing = &self.things[request.thing];
        match request.like {
            Some((other, how)) => format!("a {} {how} {}", self.things[other].name, thing.name),
            None => thing.phrase.to_owned(),
        }
    }

    pub(super) fn answer(&self, request: Request) -> String {
        let (verb, thing) = (&self.verbs[request.verb], &self.things[request.thing]);
        let how = match verb.act {
            Act::Make => format!("take {} and use {}", thing.material, thing.tool),
            Act::Get => format!("go to the {} and ask the {}", thing.place, thing.seller),
            Act::Keep => format!("put it in a {} behind the {}", thing.container, thing.spot),
            Act::Attack => format!("use {} and wait until {}", thing.tool, verb.hour),
            Act::Care => format!("see the {} and start at {}", thing.seller, verb.hour),
        };
        format!("to {} {} , {how} .", verb.word, self.object(request))
    }

    /// Puts the request's verb and object into a phrase.
    pub(super) fn fill(&self, form: &str, request: Request) -> String {
        form.replace("{v}", self.verbs[request.verb].word).replace("{o}", &self.object(request))
    }

    pub(super) fn of_kind(&self, kind: Kind) -> Vec<usize> {
        (0..self.things.len()).filter(|&at| self.things[at].kind == kind).collect()
    }

    pub(super) fn doing(&self, acts: &[Act]) -> Vec<usize> {
        (0..self.verbs.len()).filter(|&at| acts.contains(&self.verbs[at].act)).collect()
    }
}
