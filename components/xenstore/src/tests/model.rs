//! Random requests, held against a plain model: a map of all nodes, and a copy of it for a transaction.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// One request.
#[derive(Clone, Debug)]
pub struct Step {
    pub client: u32,
    pub kind: u32,
    /// 0, or which of the client's transactions, counted from 1.
    pub transaction: u32,
    pub path: String,
    pub value: usize,
}

/// Paths that meet each other, some of another domain's.
const PATHS: [&str; 9] = [
    "data",
    "data/a",
    "data/a/b",
    "data/a/c",
    "data/d",
    "name",
    "/local/domain/7/data/a",
    "/local/domain/7/data/a/b",
    "/local/domain/8/data/d",
];

pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kinds = [
        kind::WRITE,
        kind::WRITE,
        kind::READ,
        kind::MKDIR,
        kind::RM,
        kind::DIRECTORY,
        kind::SET_PERMS,
        kind::WATCH,
        kind::TRANSACTION_START,
        kind::TRANSACTION_END,
    ];
    let step = (
        prop::sample::select(&[0u32, 7, 7, 8][..]),
        prop::sample::select(kinds.to_vec()),
        0u32..3,
        prop::sample::select(&PATHS[..]),
        0usize..40,
    );
    let step = step.prop_map(|(client, kind, transaction, path, value)| Step {
        client,
        kind,
        transaction,
        path: path.to_string(),
        value,
    });
    prop::collection::vec(step, 1..40)
}

fn payload(step: &Step) -> Vec<u8> {
    let path = step.path.as_bytes();
    match step.kind {
        kind::WRITE => [path, b"\0", "v".repeat(step.value).as_bytes()].concat(),
        kind::SET_PERMS => {
            let owner = if step.path.contains("/8/") { 8 } else { 7 };
            let letter = ["n", "r", "w", "b"][step.value % 4];
            let list = std::format!("\0n{owner}\0{letter}{}\0", 15 - owner);
            [path, list.as_bytes()].concat()
        }
        kind::WATCH => [path, b"\0token\0"].concat(),
        kind::TRANSACTION_START => b"\0".to_vec(),
        kind::TRANSACTION_END => if step.value.is_multiple_of(4) {
            b"F\0"
        } else {
            b"T\0"
        }
        .to_vec(),
        _ => [path, b"\0"].concat(),
    }
}

/// Sends a step's message; the answer.
pub fn messages(b: &mut Bench, step: &Step) -> Vec<u8> {
    let transaction = match step.kind {
        kind::TRANSACTION_START => 0,
        _ => step.transaction,
    };
    b.within(step.client, transaction, step.kind, &payload(step))
}

type Nodes = BTreeMap<String, (Vec<u8>, String)>;

/// The model: everything is allowed, because domain 0 asks alone.
#[derive(Default)]
struct Model {
    nodes: Nodes,
}

fn up(path: &str) -> String {
    match path.rfind('/') {
        Some(0) | None => "/".to_string(),
        Some(at) => path[..at].to_string(),
    }
}

impl Model {
    fn on(nodes: &mut Nodes, kind: u32, path: &str, value: &[u8]) -> Vec<u8> {
        let ok = b"OK\0".to_vec();
        let none = b"ENOENT\0".to_vec();
        match kind {
            kind::READ => nodes.get(path).map_or(none, |node| node.0.clone()),
            kind::GET_PERMS => nodes.get(path).map_or(none, |node| node.1.clone().into()),
            kind::DIRECTORY if !nodes.contains_key(path) => none,
            kind::DIRECTORY => {
                let names = nodes.keys().filter(|name| *name != "/" && up(name) == path);
                let names = names.map(|name| std::format!("{}\0", &name[path.len() + 1..]));
                names.collect::<String>().into_bytes()
            }
            kind::RM if nodes.contains_key(path) => {
                let below = std::format!("{path}/");
                let gone = |name: &String| name == path || name.starts_with(&below);
                nodes.retain(|name, _| !gone(name));
                ok
            }
            kind::RM if nodes.contains_key(&up(path)) => ok,
            kind::RM => none,
            _ => {
                let mut at = path.to_string();
                let mut missing = Vec::new();
                while !nodes.contains_key(&at) {
                    missing.push(at.clone());
                    at = up(&at);
                }
                let permissions = nodes[&at].1.clone();
                for made in missing.into_iter().rev() {
                    nodes.insert(made, (Vec::new(), permissions.clone()));
                }
                if kind == kind::WRITE {
                    nodes.get_mut(path).unwrap().0 = value.to_vec();
                }
                ok
            }
        }
    }

    fn step(&mut self, step: &Step) -> Vec<u8> {
        let value = "v".repeat(step.value).into_bytes();
        Model::on(&mut self.nodes, step.kind, &step.path, &value)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Without transactions, answer by answer.
    #[test]
    fn requests_do_what_a_plain_map_does(steps in steps()) {
        let mut b = Bench::new();
        let mut model = Model::default();
        b.say(0, kind::RM, b"/local\0");
        let none = (Vec::new(), "n0\0".to_string());
        for path in ["/", "/tool", "/vm"] {
            model.nodes.insert(path.to_string(), none.clone());
        }
        for step in steps {
            let plain = [kind::WRITE, kind::READ, kind::MKDIR, kind::RM, kind::DIRECTORY];
            if !plain.contains(&step.kind) {
                continue;
            }
            let path = std::format!("/tool/{}", step.path.trim_start_matches('/'));
            let step = Step { client: 0, transaction: 0, path, ..step };
            let expected = model.step(&step);
            prop_assert_eq!(messages(&mut b, &step), expected, "{:?}", step);
        }
    }

    /// One transaction, and another client between: it commits what a copy of the map would hold, or
    /// nothing; and it never fails if nobody else changed anything.
    #[test]
    fn a_transaction_is_all_or_nothing(inside in steps(), outside in steps(), meddled in any::<bool>()) {
        let mut b = Bench::new();
        let id = b.say(0, kind::TRANSACTION_START, b"\0");
        let id: u32 = id.trim_end_matches('\0').parse().unwrap();
        let plain = [kind::WRITE, kind::READ, kind::MKDIR, kind::RM, kind::DIRECTORY];
        let plain = |step: &Step| plain.contains(&step.kind);
        let absolute = |step: Step| Step {
            client: 0,
            path: std::format!("/tool/{}", step.path.trim_start_matches('/')),
            ..step
        };
        let mut model = Model::default();
        for path in ["/", "/tool"] {
            model.nodes.insert(path.to_string(), (Vec::new(), "n0\0".to_string()));
        }
        let mut alone = model.nodes.clone();
        for step in inside.into_iter().filter(plain).map(absolute) {
            let step = Step { transaction: id, ..step };
            let value = "v".repeat(step.value).into_bytes();
            let expected = Model::on(&mut alone, step.kind, &step.path, &value);
            prop_assert_eq!(messages(&mut b, &step), expected, "{:?}", step);
        }
        if meddled {
            for step in outside.into_iter().filter(plain).map(absolute) {
                let step = Step { transaction: 0, ..step };
                let expected = model.step(&step);
                prop_assert_eq!(messages(&mut b, &step), expected, "{:?}", step);
            }
        }
        let end = b.within(0, id, kind::TRANSACTION_END, b"T\0");
        let committed = end == b"OK\0";
        prop_assert!(committed || end == b"EAGAIN\0");
        prop_assert!(committed || meddled, "nobody else changed anything");
        // If both changed something, only one order explains it: it was refused, or what it
        // looked at was as it had been.
        let nodes = b.service.state().store.iter();
        let nodes: Nodes = nodes
            .filter(|(path, _)| *path == "/tool" || path.starts_with("/tool/"))
            .map(|(path, node)| (path.to_string(), (node.content.value.clone(), "n0\0".to_string())))
            .collect();
        let of = |all: &Nodes| -> Nodes {
            let all = all.iter().filter(|(path, _)| *path != "/");
            all.map(|(path, node)| (path.clone(), node.clone())).collect()
        };
        if !committed {
            prop_assert_eq!(nodes, of(&model.nodes));
        } else if !meddled {
            prop_assert_eq!(nodes, of(&alone));
        }
    }

    #[test]
    fn any_requests_of_any_domain_are_answered_in_whole_messages(
        requests in prop::collection::vec(
            (prop::sample::select(&[0u32, 7, 8][..]), 0u32..24, 0u32..4, prop::collection::vec(
                prop::sample::select(std::vec![0u8, b'/', b'a', b'T', b'n', b'7', b'@', 200, b'd']),
                0..24,
            )),
            1..40,
        ),
    ) {
        let mut b = Bench::new();
        for (client, kind, transaction, payload) in &requests {
            // A domain that released itself has no session any more.
            if !b.service.state().sessions.contains_key(client) {
                continue;
            }
            if *kind == kind::RELEASE && *client == 0 {
                continue;
            }
            b.within(*client, *transaction, *kind, payload);
        }
        for client in [0, 7, 8] {
            b.events(client);
        }
    }
}
