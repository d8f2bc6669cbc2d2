use super::*;
use proptest::prelude::*;

fn code(bytes: &[u8]) -> Code {
    let mut words = [0u8; 16];
    words[..bytes.len()].copy_from_slice(bytes);
    let word = |at: usize| u64::from_le_bytes(words[at..at + 8].try_into().unwrap());
    Code::from_words([word(0), word(8)], bytes.len() as u64)
}

#[test]
fn fixed_instructions_count_their_prefixes() {
    let length = |fixed: Fixed, bytes: &[u8], size| fixed.length(&code(bytes), size);
    use CodeSize::*;
    assert_eq!(length(Fixed::Cpuid, &[0x0f, 0xa2], Bits64), Ok(2));
    assert_eq!(
        length(Fixed::Cpuid, &[0x66, 0xf3, 0x48, 0x0f, 0xa2], Bits64),
        Ok(5)
    );
    assert_eq!(
        length(Fixed::Cpuid, &[0x48, 0x0f, 0xa2], Bits32),
        Err(Error::Mismatch)
    );
    assert_eq!(length(Fixed::Hypercall, &[0x0f, 0x01, 0xd9], Bits32), Ok(3));
    assert_eq!(
        length(Fixed::Hypercall, &[0x0f, 0x01, 0xda], Bits32),
        Err(Error::Mismatch)
    );
    assert_eq!(length(Fixed::Port, &[0x66, 0xe7, 0x80], Bits64), Ok(3));
    assert_eq!(length(Fixed::Port, &[0xe7], Bits64), Err(Error::Mismatch));
    assert_eq!(length(Fixed::Hlt, &[], Bits64), Err(Error::Mismatch));
}

#[test]
fn apic_accesses_decode() {
    // mov eax, [0xfee00020] with a 32-bit absolute address in 64-bit code
    let load = memory_operation(
        &code(&[0x8b, 0x04, 0x25, 0x20, 0x00, 0xe0, 0xfe]),
        CodeSize::Bits64,
        0,
    )
    .unwrap();
    assert_eq!(load.length, 7);
    assert_eq!(load.bytes, 4);
    assert_eq!(
        load.kind,
        Kind::Load {
            number: 0,
            high: false,
            bytes: 4,
            signed: false
        }
    );
    // mov dword [rdi], 0x1ff
    let store = memory_operation(&code(&[0xc7, 0x07, 0xff, 1, 0, 0]), CodeSize::Bits64, 0).unwrap();
    assert_eq!(store.kind, Kind::Store(Source::Immediate(0x1ff)));
    // rep movsd with a GS source
    let moves = memory_operation(&code(&[0xf3, 0x65, 0xa5]), CodeSize::Bits32, 0).unwrap();
    assert_eq!(
        (moves.kind, moves.repeat, moves.segment),
        (Kind::MoveString, true, 5)
    );
    assert_eq!(moves.address_bytes, 4);
}

#[test]
fn control_register_moves_decode() {
    let at =
        |bytes: &[u8]| control_access(&code(bytes), CodeSize::Bits64).map(|access| access.kind);
    assert_eq!(
        at(&[0x44, 0x0f, 0x22, 0xc1]),
        Ok(ControlKind::Write {
            control: 8,
            register: 1
        })
    );
    assert_eq!(
        at(&[0x0f, 0x20, 0xe3]),
        Ok(ControlKind::Read {
            control: 4,
            register: 3
        })
    );
    assert_eq!(at(&[0x0f, 0x06]), Ok(ControlKind::ClearTaskSwitched));
    assert_eq!(at(&[0x90]), Err(Error::Mismatch));
}

#[test]
fn cache_answers_only_for_the_same_bytes() {
    let mut cache = Cache::default();
    let first = cache
        .memory_operation(&code(&[0x8b, 0x07]), CodeSize::Bits64, 0x1000)
        .unwrap();
    let again = cache
        .memory_operation(&code(&[0x8b, 0x07]), CodeSize::Bits64, 0x1000)
        .unwrap();
    assert_eq!(first, again);
    let other = cache
        .memory_operation(&code(&[0x89, 0x07]), CodeSize::Bits64, 0x1000)
        .unwrap();
    assert_ne!(first, other);
    let narrow = cache
        .memory_operation(&code(&[0x89, 0x07]), CodeSize::Bits16, 0x1000)
        .unwrap();
    assert_eq!(narrow.bytes, 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_bytes_decode_or_are_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..16),
        rip in any::<u64>(),
        width in 0..3u8,
    ) {
        let size = [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64][usize::from(width)];
        let code = code(&bytes);
        if let Ok(operation) = memory_operation(&code, size, rip) {
            prop_assert!(usize::from(operation.length) <= bytes.len().min(15));
        }
        let _ = control_access(&code, size);
    }
}
