use super::*;
use crate::nest::Silent;
use crate::nest::testing::Memory;
use crate::tensor::Dtype;

fn base() -> (tempfile::TempDir, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    Memory::random(1, Dtype::F32).write(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    (folder, checkpoint)
}

fn some(name: &str) -> Result<Parts, NestError> {
    Ok(Parts::from([("base".to_owned(), Blake3::of(name.as_bytes()))]))
}

#[test]
fn results_and_numbers_come_back_bit_for_bit() {
    let (_model, base) = base();
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("new/deep");
    let numbers = [f32::from_bits(0x7fc0_0abc), -0.0, 1e-45, f32::NEG_INFINITY, f32::from_bits(0x0a0a_0a0a)];
    let result = ("a\nb".to_owned(), u64::MAX, vec![0.1_f64.to_bits()]);
    let work = Work::open(&place, || some("one"), &base, &Silent).unwrap();
    work.save("tuning", &result, &[&numbers[..2], &numbers[2..]]).unwrap();
    assert!(work.load::<()>("sites").unwrap().is_none());
    drop(work);
    let work = Work::open(&place, || some("one"), &base, &Silent).unwrap();
    let (found, back) = work.load::<(String, u64, Vec<u64>)>("tuning").unwrap().unwrap();
    assert_eq!(found, result);
    assert_eq!(back.iter().map(|n| n.to_bits()).collect::<Vec<_>>(), numbers.map(f32::to_bits));
    assert!(work.load::<Vec<u8>>("tuning").unwrap().is_none(), "another kind of result");
    drop(work);
    let other = Work::open(&place, || some("two"), &base, &Silent).unwrap();
    assert!(other.load::<(String, u64, Vec<u64>)>("tuning").unwrap().is_none());
}

#[test]
fn one_run_at_a_time_and_never_in_the_base() {
    let (model, base) = base();
    let folder = tempfile::tempdir().unwrap();
    let first = Work::open(folder.path(), || some("one"), &base, &Silent).unwrap();
    let second = Work::open(folder.path(), || some("two"), &base, &Silent).err().unwrap();
    assert!(matches!(second, NestError::WorkBusy { .. }), "{second}");
    drop(first);
    Work::open(folder.path(), || some("two"), &base, &Silent).unwrap();
    let inside = Work::open(&model.path().join("."), || some("one"), &base, &Silent).err().unwrap();
    assert!(matches!(inside, NestError::WorkInBase { .. }), "{inside}");
    assert!(!model.path().join("lock").exists());
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    let not_a_folder = Work::open(&file, || some("one"), &base, &Silent).err().unwrap();
    assert!(matches!(not_a_folder, NestError::Work { action: "create", .. }), "{not_a_folder}");
}

#[test]
fn only_torn_files_of_its_own_are_removed() {
    let (_model, base) = base();
    let folder = tempfile::tempdir().unwrap();
    let torn = ".sites-0123456789ab.work.partial-7";
    let others = [
        "notes.txt",
        "lock",
        ".notes.partial-7",
        ".sites-0123.work.partial-7",
        "sites-0123456789ab.work.bak",
        "answers",
    ];
    for name in others.iter().chain([&torn]) {
        fs::write(folder.path().join(name), name).unwrap();
    }
    let work = Work::open(folder.path(), || some("one"), &base, &Silent).unwrap();
    work.save("sites", &1, &[]).unwrap();
    assert!(!folder.path().join(torn).exists());
    for name in others {
        assert_eq!(fs::read_to_string(folder.path().join(name)).unwrap(), name);
    }
}

#[test]
fn a_file_of_another_version_is_named_and_left_alone() {
    #[derive(Default)]
    struct Warned(std::sync::Mutex<Vec<String>>);
    impl Progress for Warned {
        fn begin(&self, _: crate::nest::Stage, _: usize) {}
        fn advance(&self, _: usize) {}
        fn warn(&self, sentence: &str) {
            self.0.lock().unwrap().push(sentence.to_owned());
        }
    }
    let (_model, base) = base();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers-0123456789ab.work");
    fs::write(&path, "nestpatch work 0\nwhatever").unwrap();
    let warned = Warned::default();
    Work::open(folder.path(), || some("one"), &base, &warned).unwrap();
    let expected = format!("{} is not a stage file of this version: it is left alone", path.display());
    assert_eq!(warned.0.into_inner().unwrap(), [expected]);
    assert!(path.exists());
}
