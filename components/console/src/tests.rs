//! What an operator sees and who gets what is typed.
use super::*;
use proptest::prelude::*;

fn shown(mux: &mut Mux) -> String {
    let bytes: Vec<u8> = core::iter::from_fn(|| mux.next_byte()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn keys(mux: &mut Mux, keys: &[u8]) {
    keys.iter().for_each(|&key| mux.typed(key));
}

fn two_guests() -> (Mux, ClientId, ClientId) {
    let mut mux = Mux::new();
    let one = mux.attach_guest("one", 0);
    let two = mux.attach_guest("two", 1);
    shown(&mut mux);
    (mux, one, two)
}

#[test]
fn the_first_guest_is_shown_raw_and_gets_the_keys() {
    let (mut mux, one, two) = two_guests();
    mux.output(one, b"\x1b[1mlogin: ");
    assert_eq!(shown(&mut mux), "\x1b[1mlogin: ");
    keys(&mut mux, b"root\r");
    assert_eq!(mux.pending(one), b"root\r");
    assert_eq!(mux.pending(two), b"");
    mux.taken(one, 2);
    assert_eq!(mux.pending(one), b"ot\r");
}

#[test]
fn help_is_announced_with_the_first_guest() {
    let mut mux = Mux::new();
    mux.attach_guest("linux", 0);
    assert_eq!(
        shown(&mut mux),
        "[console] guest console: linux (Ctrl-] h for help)\r\n"
    );
}

#[test]
fn who_is_faster_does_not_decide_who_is_shown() {
    let mut mux = Mux::new();
    let three = mux.attach_guest("three", 2);
    let two = mux.attach_guest("two", 1);
    mux.output(two, b"not yet");
    assert_eq!(shown(&mut mux), "");
    let one = mux.attach_guest("one", 0);
    assert!(shown(&mut mux).starts_with("[console] guest console: one "));
    keys(&mut mux, b"a\x1d3b\x1d2c\x1dnd\x1dne");
    assert_eq!(mux.pending(one), b"ae");
    assert_eq!(mux.pending(two), b"c");
    assert_eq!(mux.pending(three), b"bd");
}

#[test]
fn another_guests_output_waits_until_it_is_looked_at() {
    let (mut mux, one, two) = two_guests();
    mux.output(two, b"booting\r\n# ");
    assert_eq!(shown(&mut mux), "");
    keys(&mut mux, b"\x1d2");
    assert_eq!(
        shown(&mut mux),
        "[console] guest console: two\r\nbooting\r\n# "
    );
    keys(&mut mux, b"x");
    assert_eq!(mux.pending(two), b"x");
    assert_eq!(mux.pending(one), b"");
    // Nothing was missed since: only the line with the prompt is repeated.
    keys(&mut mux, b"\x1dn\x1dn");
    let text = shown(&mut mux);
    assert!(text.ends_with("guest console: two\r\n# "), "{text:?}");
}

#[test]
fn log_lines_are_prefixed_and_cannot_touch_the_terminal() {
    let (mut mux, one, _) = two_guests();
    let log = mux.attach_log("vmm-one");
    mux.output(log, b"half a ");
    assert_eq!(shown(&mut mux), "");
    mux.output(log, b"line\n\x1b[2J\n");
    assert_eq!(
        shown(&mut mux),
        "[vmm-one] half a line\r\n[vmm-one] .[2J\r\n"
    );
    mux.output(one, b"# ");
    mux.output(log, b"late\n");
    assert_eq!(shown(&mut mux), "# \r\n[vmm-one] late\r\n");
}

#[test]
fn the_escape_key_typed_twice_reaches_the_guest() {
    let (mut mux, one, _) = two_guests();
    keys(&mut mux, b"\x1d\x1da");
    assert_eq!(mux.pending(one), b"\x1da");
    keys(&mut mux, b"\x1dh");
    let text = shown(&mut mux);
    assert!(
        text.contains("1 one (shown)") && text.contains("2 two\r\n"),
        "{text}"
    );
    keys(&mut mux, b"\x1d9");
    assert!(shown(&mut mux).contains("no guest with this number"));
}

#[test]
fn a_flood_is_bounded() {
    let (mut mux, _, two) = two_guests();
    for _ in 0..100 {
        mux.output(two, &[b'x'; 1000]);
    }
    keys(&mut mux, b"\x1d2");
    assert!(shown(&mut mux).len() <= scrollback::SCROLLBACK + 100);
    for _ in 0..10_000 {
        mux.typed(b'y');
    }
    assert_eq!(mux.pending(two).len(), TYPED);
}

#[test]
fn clients_have_to_wait_while_the_line_is_behind() {
    let (mut mux, one, _) = two_guests();
    assert!(mux.has_room());
    mux.output(one, &[b'x'; LINE_HIGH]);
    assert!(!mux.has_room());
    mux.next_byte();
    assert!(mux.has_room());
}

/// What was handed on to be carried out.
fn handed(mux: &mut Mux, operator: ClientId) -> String {
    let lines = String::from_utf8_lossy(mux.pending(operator)).into_owned();
    mux.taken(operator, lines.len());
    lines
}

#[test]
fn the_operators_line_hands_on_commands_and_shows_answers() {
    let (mut mux, one, _) = two_guests();
    let operator = mux.attach_operator("toolstack");
    keys(&mut mux, b"\x1d0");
    assert_eq!(shown(&mut mux), "operator> ");
    keys(&mut mux, b"pause one\r");
    assert_eq!(shown(&mut mux), "pause one\r\n");
    assert_eq!(mux.pending(one), b"");
    assert_eq!(handed(&mut mux, operator), "pause one\n");
    // Typed ahead: shown when the answer has come.
    keys(&mut mux, b"li");
    assert_eq!(shown(&mut mux), "");
    mux.output(operator, b"pau");
    assert_eq!(
        (shown(&mut mux).as_str(), mux.unfinished(operator)),
        ("", 3)
    );
    mux.output(operator, b"sed\n\x04\n");
    assert_eq!(shown(&mut mux), "paused\r\noperator> li");
    keys(&mut mux, b"ar\r");
    mux.output(operator, b"liar: no such command\n\x04\n");
    assert_eq!(shown(&mut mux), "ar\r\nliar: no such command\r\noperator> ");
}

#[test]
fn the_operators_line_and_a_guests_console_change_places() {
    let (mut mux, one, two) = two_guests();
    let operator = mux.attach_operator("toolstack");
    keys(&mut mux, b"\x1d0console two\r");
    assert!(shown(&mut mux).ends_with("guest console: two\r\n"));
    mux.output(two, b"# ");
    keys(&mut mux, b"x\x1d0");
    assert_eq!(mux.pending(two), b"x");
    assert_eq!(shown(&mut mux), "# \r\noperator> ");
    mux.output(one, b"unseen");
    keys(&mut mux, b"console three\r");
    assert!(shown(&mut mux).contains("no such guest\r\noperator> "));
    // An answer that comes late is a line among others.
    keys(&mut mux, b"list\r\x1d1");
    assert_eq!(handed(&mut mux, operator), "list\n");
    shown(&mut mux);
    mux.output(operator, b"no guests\n\x04\n");
    assert_eq!(shown(&mut mux), "\r\n[operator] no guests\r\n");
}

#[test]
fn a_log_line_leaves_the_operators_line_whole() {
    let mut mux = Mux::new();
    let log = mux.attach_log("root");
    let operator = mux.attach_operator("toolstack");
    keys(&mut mux, b"cre");
    mux.output(log, b"hello\n");
    assert_eq!(
        shown(&mut mux),
        "operator> cre\r\x1b[K[root] hello\r\noperator> cre"
    );
    // A guest that starts meanwhile takes nothing away.
    mux.attach_guest("one", 0);
    keys(&mut mux, b"ate one\r");
    assert_eq!(handed(&mut mux, operator), "create one\n");
}

#[test]
fn commands_that_wait_are_bounded() {
    let mut mux = Mux::new();
    let operator = mux.attach_operator("toolstack");
    for _ in 0..100 {
        keys(&mut mux, b"list\r");
    }
    assert!(shown(&mut mux).contains("too many commands"));
    assert_eq!(handed(&mut mux, operator), "list\n".repeat(COMMANDS));
    keys(&mut mux, b"list\r");
    assert_eq!(handed(&mut mux, operator), "");
    mux.output(operator, b"\x04\n");
    keys(&mut mux, b"list\r");
    assert_eq!(handed(&mut mux, operator), "list\n");
}

#[test]
fn without_a_toolstack_the_operator_is_told() {
    let mut mux = Mux::new();
    keys(&mut mux, b"list\r");
    let text = shown(&mut mux);
    assert!(
        text.contains("nobody is there") && text.ends_with("operator> "),
        "{text}"
    );
}

#[test]
fn a_toolstack_that_is_started_again_leaves_no_command_waiting() {
    let mut mux = Mux::new();
    let operator = mux.attach_operator("toolstack");
    keys(&mut mux, b"list\r");
    assert_eq!(handed(&mut mux, operator), "list\n");
    mux.output(operator, b"gue");
    shown(&mut mux);
    mux.again(operator, "toolstack");
    let text = shown(&mut mux);
    assert!(
        text.contains("started again") && text.ends_with("operator> "),
        "{text}"
    );
    keys(&mut mux, b"info\r");
    shown(&mut mux);
    mux.output(operator, b"here\n\x04\n");
    assert_eq!(shown(&mut mux), "here\r\noperator> ");
}

#[test]
fn dmesg_shows_again_what_components_said_and_no_more_than_is_kept() {
    let (mut mux, one, _) = two_guests();
    let log = mux.attach_log("root");
    mux.output(log, b"first \x1b[2J\n");
    mux.output(one, b"not a log\n");
    shown(&mut mux);
    keys(&mut mux, b"\x1d0dmesg\r");
    let text = shown(&mut mux);
    assert!(text.contains("[root] first .[2J\r\noperator> "), "{text}");
    assert!(!text.contains("not a log"), "{text}");
    for number in 0..5000 {
        mux.output(log, format!("line {number}\n").as_bytes());
    }
    shown(&mut mux);
    keys(&mut mux, b"dmesg\r");
    let text = shown(&mut mux);
    assert!(text.contains("line 4999") && !text.contains("first"));
    assert!(text.len() < 2 * history::HISTORY);
}

#[test]
fn a_guest_that_is_to_be_shown_is_shown_when_it_attaches() {
    let (mut mux, one, _) = two_guests();
    let operator = mux.attach_operator("toolstack");
    keys(&mut mux, b"\x1d0create -c new\r");
    mux.output(operator, b"building\n\x04new\n");
    shown(&mut mux);
    let new = mux.attach_guest("new", 2);
    assert!(shown(&mut mux).contains("guest console: new"));
    keys(&mut mux, b"a\x1d0create -c one\r");
    assert_eq!(mux.pending(new), b"a");
    mux.output(operator, b"\x04one\n");
    keys(&mut mux, b"b");
    assert_eq!(mux.pending(one), b"b");
    // Whoever types something else meanwhile is not interrupted.
    keys(&mut mux, b"\x1d0create -c late\r");
    mux.output(operator, b"\x04late\n");
    keys(&mut mux, b"l");
    let late = mux.attach_guest("late", 3);
    keys(&mut mux, b"x");
    assert_eq!(mux.pending(late), b"");
}

#[test]
fn a_guest_in_anothers_place_has_its_own_name_and_nothing_of_the_others() {
    let (mut mux, _, two) = two_guests();
    mux.output(two, b"secret");
    keys(&mut mux, b"\x1d2x");
    shown(&mut mux);
    mux.again(two, "three");
    assert!(shown(&mut mux).contains("guest console: three"));
    assert_eq!(mux.pending(two), b"");
    keys(&mut mux, b"\x1d1\x1d2");
    let text = shown(&mut mux);
    assert!(
        text.contains("guest console: three") && !text.contains("secret"),
        "{text}"
    );
    // The same guest keeps what it said.
    mux.output(two, b"# ");
    mux.again(two, "three");
    keys(&mut mux, b"\x1d1\x1d2");
    assert!(shown(&mut mux).ends_with("# "));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn any_mixture_of_output_and_keys_is_survived(
        steps in proptest::collection::vec((0usize..5, proptest::collection::vec(any::<u8>(), 0..60)), 0..40)
    ) {
        let (mut mux, _, _) = two_guests();
        mux.attach_log("log");
        mux.attach_operator("toolstack");
        for (who, bytes) in steps {
            if who == 4 {
                keys(&mut mux, &bytes);
            } else {
                mux.output(ClientId(who), &bytes);
            }
        }
        while mux.next_byte().is_some() {}
        prop_assert!(mux.is_drained());
    }
}
