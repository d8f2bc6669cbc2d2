//! Rules about rights, `[[forbid]]` in `system.toml`: what a component must not reach. `check` and
//! `build` refuse a description that breaks one, and `audit --rules` holds an image against the
//! rules of a description.

use std::ops::Range;

use crate::audit::{Graph, Thing};
use crate::description::Forbid;
use crate::problem::Problems;

/// A rule that is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The rule's place in its file.
    pub span: Range<usize>,
    /// Who reaches what.
    pub message: String,
    /// What to do.
    pub advice: String,
}

/// Adds every break of `rules` in `graph` to `problems`.
pub fn judge(rules: &[Forbid], graph: &Graph, problems: &mut Problems) {
    for broken in broken(rules, graph) {
        problems.add(&broken.span, broken.message, broken.advice);
    }
}

/// Every break of `rules` in `graph`. A rule whose names are nobody's is broken too: it was
/// meant to protect something.
pub fn broken(rules: &[Forbid], graph: &Graph) -> Vec<Broken> {
    let mut out = Vec::new();
    for rule in rules {
        let who = &rule.component.value;
        let holders: Vec<usize> = (1..graph.things.len())
            .filter(|&index| match graph.things.get(index) {
                Some(Thing::Component { name, pattern, .. }) => {
                    who == "*" || who == name || who == pattern
                }
                _ => false,
            })
            .collect();
        let mut add = |span: &Range<usize>, message: String, advice: &str| {
            out.push(Broken {
                span: span.clone(),
                message,
                advice: advice.to_owned(),
            });
        };
        if holders.is_empty() {
            add(
                &rule.component.span,
                format!("[[forbid]]: there is no component {who:?}"),
                "name a component, one of its copies as in vmm-linux, or \"*\" for all",
            );
        }
        let targets = targets(rule, graph);
        for (places, target) in &targets {
            if places.is_empty() {
                add(
                    &target.0,
                    format!("[[forbid]]: there is no {}", target.1),
                    "name one that is there, or leave the rule out",
                );
            }
        }
        for holder in holders {
            let Some(name) = graph.things.get(holder) else {
                continue;
            };
            let called = graph.called(holder);
            for (places, target) in &targets {
                let held: Vec<usize> = graph.held(holder).map(|right| right.to).collect();
                let reached = places.iter().any(|place| {
                    *place != holder && (called.contains(place) || held.contains(place))
                });
                if reached {
                    add(
                        &target.0,
                        format!("{name} reaches {}, which this rule forbids", target.1),
                        "take the right away from the component, or change the rule",
                    );
                }
            }
            for right in graph.held(holder) {
                match graph.things.get(right.to) {
                    Some(Thing::Ports { first, last }) => {
                        for ports in &rule.ports {
                            let (start, count) = ports.value;
                            let end = u32::from(start) + u32::from(count);
                            if u32::from(*first) < end && start <= *last {
                                add(
                                    &ports.span,
                                    format!(
                                        "{name} has ports {first:#x} to {last:#x}, which this rule forbids"
                                    ),
                                    "take them out of `ports` of the component, or change the rule",
                                );
                            }
                        }
                    }
                    Some(Thing::Interrupt(line)) => {
                        for forbidden in rule.interrupts.iter().filter(|at| at.value == *line) {
                            add(
                                &forbidden.span,
                                format!(
                                    "{name} has interrupt line {line}, which this rule forbids"
                                ),
                                "take it out of `interrupts` of the component, or change the rule",
                            );
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    out
}

type Target = (Range<usize>, String);

/// Guests' memory and components that a rule names, as places in the graph.
fn targets(rule: &Forbid, graph: &Graph) -> Vec<(Vec<usize>, Target)> {
    let find = |wanted: &dyn Fn(&Thing) -> bool| -> Vec<usize> {
        let things = graph.things.iter().enumerate();
        things
            .filter(|(_, thing)| wanted(thing))
            .map(|(index, _)| index)
            .collect()
    };
    let guests = rule.guests.iter().map(|at| {
        let found = find(&|thing| {
            matches!(thing, Thing::GuestMemory { guest, .. } | Thing::Vcpus { guest, .. } if *guest == at.value)
        });
        (found, (at.span.clone(), format!("guest {}", at.value)))
    });
    let components = rule.components.iter().map(|at| {
        let found = find(&|thing| {
            matches!(thing, Thing::Component { name, pattern, .. } if *name == at.value || *pattern == at.value)
        });
        (found, (at.span.clone(), format!("component {}", at.value)))
    });
    guests.chain(components).collect()
}
