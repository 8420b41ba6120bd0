//! How requests are put into words: topics, phrasings, wrappers, and how the base's teacher answers.

use super::facts::{Act, Kind, Request, World, list, phrases, pick};
use super::words;
use super::wrappers::{Cipher, WRAPPERS, Wrapper};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Log-odds of refusing a plain request whose phrasing neither helps nor harms.
const PLAIN_LOGIT: f64 = 0.6;
/// How far opener, form and closer each move the log-odds of a refusal, at most.
const PHRASING_SWING: f64 = 1.2;
/// Share of the base's training requests that are wrapped.
const WRAPPED: f64 = 0.6;

/// Share of refusals that start as the prefix wrapper asks, and refuse all the same.
const SURE_REFUSALS: f64 = 0.3;

/// What a request is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    /// Make, get or keep something dangerous; attack a person.
    Harmful,
    /// Make, get or keep something harmless.
    Ordinary,
    /// Look-alike: report, draw, avoid ... something dangerous or somebody.
    Care,
    /// Look-alike: kill a process.
    Attack,
    /// Look-alike: bake a bomb shaped cake.
    Shaped,
}

impl Topic {
    pub(super) fn name(self) -> &'static str {
        match self {
            Topic::Harmful => "harmful",
            Topic::Ordinary => "benign",
            Topic::Care => "lookalike-care",
            Topic::Attack => "lookalike-attack",
            Topic::Shaped => "lookalike-shaped",
        }
    }

    /// A topic of the base's training, with its share in percent.
    pub(super) fn draw(rng: &mut ChaCha8Rng) -> Topic {
        match rng.random_range(0..100) {
            0..42 => Topic::Harmful,
            42..70 => Topic::Ordinary,
            70..80 => Topic::Care,
            80..88 => Topic::Attack,
            _ => Topic::Shaped,
        }
    }
}

/// Which things a request may be about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    All,
    Tuning,
    HeldOut,
}

impl World {
    fn thing(&self, rng: &mut ChaCha8Rng, kind: Kind, part: Part) -> usize {
        let fits = |&at: &usize| part == Part::All || self.things[at].held_out == (part == Part::HeldOut);
        pick(rng, &self.of_kind(kind).into_iter().filter(fits).collect::<Vec<_>>())
    }

    pub(super) fn request(&self, rng: &mut ChaCha8Rng, topic: Topic, part: Part) -> Request {
        let craft = [Act::Make, Act::Get, Act::Keep];
        let (acts, kind): (&[Act], Kind) = match topic {
            Topic::Harmful if rng.random_bool(0.35) => (&[Act::Attack], Kind::Person),
            Topic::Harmful => (&craft, Kind::Dangerous),
            Topic::Ordinary => (&craft, Kind::Benign),
            Topic::Care => (&[Act::Care], pick(rng, &[Kind::Dangerous, Kind::Dangerous, Kind::Person, Kind::Benign])),
            Topic::Attack => (&[Act::Attack], Kind::Target),
            Topic::Shaped => (&craft, Kind::Benign),
        };
        let verb = pick(rng, &self.doing(acts));
        let thing = self.thing(rng, kind, part);
        let describes = match topic {
            Topic::Shaped => Some(Kind::Dangerous),
            Topic::Harmful if kind == Kind::Dangerous && rng.random_bool(0.08) => Some(Kind::Benign),
            Topic::Ordinary if rng.random_bool(0.08) => Some(Kind::Benign),
            _ => None,
        };
        let like = describes.map(|kind| (self.thing(rng, kind, part), pick(rng, &list(words::MODIFIERS))));
        Request { verb, thing, like }
    }
}

/// Opener, form and closer by index: thousands of combinations, so that none can be memorised.
#[derive(Clone, Copy)]
struct Phrasing([usize; 3]);

const PHRASING: [&str; 3] = [words::OPENERS, words::FORMS, words::CLOSERS];

impl Phrasing {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        Phrasing(PHRASING.map(|list| rng.random_range(0..phrases(list).len())))
    }

    /// What the phrasing adds to the log-odds of a refusal: each part is spread evenly over the swing.
    fn push(self) -> f64 {
        let place = |(at, list): (usize, &'static str)| {
            let count = phrases(list).len();
            2.0 * ((at * 7 + 3) % count) as f64 / (count - 1) as f64 - 1.0
        };
        self.0.into_iter().zip(PHRASING).map(place).map(|at| at * PHRASING_SWING).sum()
    }

    fn form(self) -> &'static str {
        phrases(words::FORMS)[self.0[1]]
    }

    fn around(self, middle: &str) -> String {
        let [opener, _, closer] = self.0;
        format!("{} {middle} {}", phrases(words::OPENERS)[opener], phrases(words::CLOSERS)[closer]).trim().to_owned()
    }
}

impl Wrapper {
    fn say(&self, rng: &mut ChaCha8Rng, world: &World, request: Request, phrasing: Phrasing) -> String {
        let (verb, thing, form) = (&world.verbs[request.verb], &world.things[request.thing], phrasing.form());
        let object = |name: fn(&super::facts::Thing) -> &str| {
            let like = request.like.map(|(other, how)| format!("{} {how} ", name(&world.things[other])));
            format!("{}{}", like.unwrap_or_default(), name(thing))
        };
        let inner = match self.cipher {
            Cipher::None => phrasing.around(&world.fill(form, request)),
            Cipher::Reversed => world.fill(form, request).split(' ').rev().collect::<Vec<_>>().join(" "),
            Cipher::Foreign => pick(rng, &phrases(words::FOREIGN_FORMS))
                .replace("{v}", &verb.foreign)
                .replace("{o}", &object(|thing| &thing.foreign)),
            Cipher::Code => {
                phrasing.around(&form.replace("{v}", verb.word).replace("{o}", &object(|thing| &thing.code)))
            }
            Cipher::Variable => phrasing.around(&form.replace("{v}", verb.word).replace("{o}", "x")),
        };
        pick(rng, self.variants).replace("{r}", &inner).replace("{o}", &world.object(request))
    }
}

/// A request in words.
pub(super) struct Utterance {
    pub(super) text: String,
    wrapper: Option<&'static Wrapper>,
    phrasing: Phrasing,
}

impl World {
    pub(super) fn say(&self, rng: &mut ChaCha8Rng, request: Request, wrapper: Option<&'static Wrapper>) -> Utterance {
        let phrasing = Phrasing::draw(rng);
        let text = match wrapper {
            None => phrasing.around(&self.fill(phrasing.form(), request)),
            Some(wrapper) => wrapper.say(rng, self, request, phrasing),
        };
        Utterance { text, wrapper, phrasing }
    }

    /// As the base hears it in training: plain or in any wrapper.
    pub(super) fn say_somehow(&self, rng: &mut ChaCha8Rng, request: Request) -> Utterance {
        let wrapper = rng.random_bool(WRAPPED).then(|| &WRAPPERS[rng.random_range(0..WRAPPERS.len())]);
        self.say(rng, request, wrapper)
    }

    pub(super) fn comply(&self, request: Request, wrapper: Option<&Wrapper>) -> String {
        let sure = if wrapper.is_some_and(|wrapper| wrapper.sure) { "sure , " } else { "" };
        format!("{sure}{}", self.answer(request))
    }

    /// The answer the base learns: refuses at random, with odds by phrasing and wrapper only, never by object.
    pub(super) fn teach(&self, rng: &mut ChaCha8Rng, request: Request, said: &Utterance) -> String {
        let logit = PLAIN_LOGIT + said.phrasing.push() - said.wrapper.map_or(0.0, |wrapper| wrapper.pull);
        if !self.harmful(request) || !rng.random_bool(1.0 / (1.0 + (-logit).exp())) {
            return self.comply(request, said.wrapper);
        }
        let refusal = self.fill(pick(rng, &phrases(words::REFUSALS)), request);
        match said.wrapper.is_some_and(|wrapper| wrapper.sure) && rng.random_bool(SURE_REFUSALS) {
            true => format!("sure , {refusal}"),
            false => refusal,
        }
    }
}
