//! Tests of the encoding with states that no device has.

use std::fmt;

use proptest::prelude::*;
use serde::de::{Deserializer, SeqAccess, Visitor};

use super::*;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Example {
    flag: bool,
    number: u32,
    table: [u64; 3],
    list: Vec<u8>,
    choice: Option<u16>,
}

fn example() -> Example {
    Example { flag: true, number: 300, table: [0, 1, u64::MAX], list: vec![1, 2, 3], choice: Some(7) }
}

fn of_bytes(version: u16, bytes: &[u8]) -> SavedState {
    SavedState { version, bytes: bytes.to_vec() }
}

#[test]
fn state_is_decoded_as_it_was_encoded() {
    let saved = SavedState::encode(1, &example());
    assert_eq!(saved.version(), 1);
    assert_eq!(saved.decode(1), Ok(example()));
}

#[test]
fn layout_of_the_bytes_does_not_change() {
    // The postcard specification: a flag, a varint, three varints, a length and its bytes, an option.
    let mut bytes = vec![1, 0xac, 0x02, 0, 1];
    bytes.extend([0xff; 9].into_iter().chain([1]));
    bytes.extend([3, 1, 2, 3, 1, 7]);
    assert_eq!(SavedState::encode(1, &example()).bytes(), bytes);
}

#[test]
fn saved_state_itself_can_be_written_and_read() {
    let saved = SavedState::encode(3, &example());
    let file = postcard::to_allocvec(&saved).unwrap();
    assert_eq!(file[..2], [3, saved.bytes().len() as u8]);
    assert_eq!(postcard::from_bytes(&file), Ok(saved));
}

#[test]
fn versions_outside_the_known_ones_are_refused_by_number() {
    for (version, newest) in [(0, 1), (2, 1), (u16::MAX, 3), (1, 0)] {
        let error = of_bytes(version, &[]).decode::<()>(newest).unwrap_err();
        assert_eq!(error, StateError::Version { version, newest });
    }
    for version in 1..=3 {
        assert_eq!(of_bytes(version, &[]).decode::<()>(3), Ok(()));
    }
    let text = of_bytes(2, &[]).decode::<()>(1).unwrap_err().to_string();
    assert_eq!(text, "its state has version 2; this build reads versions from 1 to 1");
}

#[test]
fn bytes_after_the_state_are_refused_by_number() {
    let mut bytes = SavedState::encode(1, &example()).bytes().to_vec();
    bytes.extend([0; 5]);
    let error = of_bytes(1, &bytes).decode::<Example>(1).unwrap_err();
    assert_eq!(error, StateError::TrailingBytes { extra: 5 });
    assert_eq!(of_bytes(1, &[0]).decode::<()>(1), Err(StateError::TrailingBytes { extra: 1 }));
}

#[test]
fn every_shorter_encoding_is_refused() {
    let bytes = SavedState::encode(1, &example()).bytes().to_vec();
    for len in 0..bytes.len() {
        let error = of_bytes(1, &bytes[..len]).decode::<Example>(1).unwrap_err();
        assert!(matches!(error, StateError::Encoding { len: shown, .. } if shown == len), "{error}");
    }
}

#[test]
fn type_that_cannot_be_encoded_is_refused_by_every_decoder() {
    struct Endless;
    impl Serialize for Endless {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_seq(std::iter::repeat_n(0_u8, 3).filter(|byte| *byte == 0))
        }
    }
    let saved = SavedState::encode(1, &Endless);
    assert_eq!(saved.decode::<()>(1), Err(StateError::Version { version: 0, newest: 1 }));
}

/// Records for how many elements a list would make space before it has read one.
#[derive(Debug)]
struct Announced(Option<usize>);

impl<'de> Deserialize<'de> for Announced {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Announced;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Announced, A::Error> {
                let announced = list.size_hint();
                // The end of the bytes, too, ends the list here, so that the number is returned.
                while let Ok(Some(_)) = list.next_element::<u8>() {}
                Ok(Announced(announced))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

#[test]
fn length_makes_space_only_for_elements_that_are_there() {
    assert_eq!(of_bytes(1, &[2, 7, 7]).decode::<Announced>(1).unwrap().0, Some(2));
    // 2^42 elements are announced, of which three are there.
    let huge = of_bytes(1, &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 1, 2, 3]);
    assert_eq!(huge.decode::<Announced>(1).unwrap().0, None);
    assert!(matches!(huge.decode::<Vec<[u64; 32]>>(1), Err(StateError::Encoding { .. })));
}

#[test]
fn errors_name_device_field_and_value() {
    let text = |result: Result<(), StateError>| result.unwrap_err().of_device("COM1").to_string();
    assert_eq!(text(at_most("lcr", 0x1ff_u32, 0xff)), "COM1: field `lcr` is 0x1ff: at most 0xff");
    assert_eq!(
        text(only_bits("ier", 0x11_u8, 0x0f)),
        "COM1: field `ier` is 0x11: only the bits of 0xf can be set"
    );
    assert_eq!(text(exactly("last", 3_u8, 23)), "COM1: field `last` is 0x3: always 0x17 here");
    let entry = exactly("ram", 3_u8, 0).map_err(|error| error.of_entry(10_u8));
    assert_eq!(text(entry), "COM1: field `ram[10]` is 0x3: always 0x0 here");
    let long = StateError::Length { field: "fifo", len: 65, allowed: "at most 64".into() };
    assert_eq!(text(Err(long)), "COM1: field `fifo` has 65 entries: at most 64");
    assert_eq!((at_most("lcr", 0xff_u8, 0xff), only_bits("ier", 5_u8, 0x0f)), (Ok(()), Ok(())));
    assert_eq!(exactly("last", 23_u8, 23), Ok(()));
}

#[test]
fn name_of_an_unknown_device_is_cut_and_shows_no_control_characters() {
    let text = StateError::unknown_device(&format!("\x1b[31m{}", "x".repeat(1_000_000))).to_string();
    assert!(text.contains(r"'\u{1b}[31mxxx") && text.len() < 200, "{text}");
}

#[test]
fn restoration_changes_nothing_before_it_is_applied() {
    let count = std::cell::Cell::new(0);
    let restoration = Restoration::new(|| count.set(count.get() + 1));
    assert_eq!(count.get(), 0);
    restoration.apply();
    assert_eq!(count.get(), 1);
    drop(Restoration::new(|| count.set(7)));
    assert_eq!(count.get(), 1);
}

proptest! {
    #[test]
    fn any_bytes_are_survived(version: u16, newest: u16, bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let saved = of_bytes(version, &bytes);
        if let Ok(state) = saved.decode::<Example>(newest) {
            prop_assert!(state.list.len() <= bytes.len());
            prop_assert!((1..=newest).contains(&version));
        }
    }
}
