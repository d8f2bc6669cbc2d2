//! What always holds. Each is a function over the whole state that says what is wrong; `before` and
//! `after` of a step are compared where a single state cannot tell.

use crate::state::*;
use microvisor_abi::cap::Map;
use microvisor_abi::{Kind, Rights, SpaceKind};
use std::collections::{BTreeMap, BTreeSet};

/// What an invariant answers: what is wrong, if anything.
pub type Holds = Result<(), String>;

/// A named invariant.
pub type Invariant = (&'static str, fn(&State) -> Holds);

/// Every invariant of a single state.
pub const ALL: &[Invariant] = &[
    ("derivation_is_a_forest", derivation_is_a_forest),
    ("authority_never_amplifies", authority_never_amplifies),
    (
        "every_object_has_one_original",
        every_object_has_one_original,
    ),
    ("memory_donated_is_memory_accounted", memory_is_accounted),
    (
        "kernel_frames_are_never_mapped",
        kernel_frames_are_never_mapped,
    ),
    ("every_mapping_was_given", every_mapping_was_given),
    ("tables_are_the_spaces_own", tables_are_the_spaces_own),
    ("time_is_bound_once_and_conserved", time_is_bound_once),
    (
        "every_thread_is_where_it_says",
        every_thread_is_where_it_says,
    ),
    ("no_bit_waits_for_a_waiting_thread", no_bit_waits),
    ("a_reply_goes_to_its_caller_once", replies_match_callers),
    ("nothing_dangles", nothing_dangles),
];

/// Checks all of them.
pub fn check(state: &State) -> Holds {
    for (name, holds) in ALL {
        holds(state).map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(())
}

fn holds(rule: bool, why: impl FnOnce() -> String) -> Holds {
    if rule { Ok(()) } else { Err(why()) }
}

/// Parents and children agree, and following parents ends.
pub fn derivation_is_a_forest(s: &State) -> Holds {
    for (place, cap) in &s.caps {
        for child in &cap.children {
            let knows = s.caps.get(child).is_some_and(|c| c.parent == Some(*place));
            holds(knows, || format!("{child:?} is no child of {place:?}"))?;
        }
        if let Some(parent) = cap.parent {
            let siblings = s.caps.get(&parent).map_or(&[][..], |p| &p.children);
            let known = siblings.iter().filter(|c| *c == place).count() == 1;
            holds(known, || format!("{place:?} is not known to {parent:?}"))?;
        }
    }
    // Every capability is below a root, so there is no circle.
    let mut open: Vec<Place> = s
        .caps
        .iter()
        .filter(|(_, cap)| cap.parent.is_none())
        .map(|(place, _)| *place)
        .collect();
    let mut reached = 0;
    while let Some(place) = open.pop() {
        reached += 1;
        open.extend(&s.at(place).children);
    }
    holds(reached == s.caps.len(), || "a circle".into())
}

/// What is derived is never more than what it was derived from. A copy whose original died with the
/// capability space around it belongs to the memory that the original was made of.
pub fn authority_never_amplifies(s: &State) -> Holds {
    for (place, cap) in &s.caps {
        let Some(parent) = cap.parent.map(|p| s.at(p)) else {
            continue;
        };
        if cap.original {
            // Only memory makes something new, and device memory nothing but memory.
            let device = matches!(parent.what, What::Untyped { device: true, .. });
            let mappable = matches!(cap.kind(), Kind::Frame | Kind::Memory);
            let fine = matches!(parent.what, What::Untyped { .. }) && (!device || mappable);
            holds(fine, || format!("{place:?} was made of {parent:?}"))?;
            continue;
        }
        let rights = cap.rights & !parent.rights == 0;
        let inside = match (&cap.what, &parent.what) {
            (
                What::Page {
                    base,
                    order,
                    device,
                },
                What::Page {
                    base: above,
                    order: whole,
                    device: d,
                },
            ) => {
                let end = base + (1 << (order - 12));
                device == d && base >= above && end <= above + (1 << (whole - 12))
            }
            (
                What::Range {
                    kind,
                    first,
                    count,
                    highest,
                },
                What::Range {
                    kind: k,
                    first: f,
                    count: c,
                    highest: h,
                },
            ) => kind == k && first >= f && first + count <= f + c && highest <= h,
            (
                What::Object { kind, at, number },
                What::Object {
                    kind: k,
                    at: a,
                    number: n,
                },
            ) => {
                let same = at == a || (at.is_none() && *kind == Kind::CapSpace);
                kind == k && same && (number == n || *n == 0)
            }
            (
                What::Page {
                    base,
                    order,
                    device,
                },
                What::Untyped {
                    base: b,
                    used,
                    device: d,
                    ..
                },
            ) => device == d && base >= b && base + (1 << (order - 12)) <= b + used,
            (What::Object { at: None, .. }, What::Untyped { .. }) => true,
            _ => false,
        };
        holds(rights && inside, || {
            format!("{place:?} {cap:?} is more than {parent:?}")
        })?;
    }
    Ok(())
}

/// Every object that exists.
fn objects(s: &State) -> BTreeMap<Frame, (Kind, u64)> {
    let mut all = BTreeMap::new();
    all.extend(s.spaces.keys().map(|f| (*f, (Kind::AddressSpace, 2))));
    all.extend(s.threads.keys().map(|f| (*f, (Kind::Thread, 2))));
    all.extend(s.scheds.keys().map(|f| (*f, (Kind::SchedContext, 1))));
    all.extend(s.endpoints.keys().map(|f| (*f, (Kind::Endpoint, 1))));
    all.extend(s.replies.keys().map(|f| (*f, (Kind::Reply, 1))));
    all.extend(
        s.notifications
            .keys()
            .map(|f| (*f, (Kind::Notification, 1))),
    );
    let size = s.machine.vcpu_frames;
    all.extend(s.vcpus.keys().map(|f| (*f, (Kind::Vcpu, size))));
    let frames = |slots: u64| (slots + 1) / 64;
    all.extend(
        s.cap_spaces
            .iter()
            .map(|(f, c)| (*f, (Kind::CapSpace, frames(c.slots)))),
    );
    all
}

/// An object exists exactly as long as its one original capability.
pub fn every_object_has_one_original(s: &State) -> Holds {
    let mut seen = BTreeMap::new();
    for cap in s.caps.values().filter(|cap| cap.original) {
        if let (What::Object { kind, .. }, Some(at)) = (&cap.what, cap.object()) {
            holds(seen.insert(at, *kind).is_none(), || {
                format!("two originals of {at:#x}")
            })?;
        }
    }
    let there: BTreeMap<_, _> = objects(s).into_iter().map(|(at, (k, _))| (at, k)).collect();
    holds(seen == there, || {
        format!("originals {seen:x?}, objects {there:x?}")
    })
}

/// First frame and number of frames that an original stands for.
fn extent(s: &State, cap: &Cap) -> Option<(Frame, u64)> {
    match cap.what {
        _ if !cap.original => None,
        What::Untyped { base, frames, .. } | What::Tables { base, frames, .. } => {
            Some((base, frames))
        }
        What::Page { base, order, .. } => Some((base, 1 << (order - 12))),
        What::Object { at: Some(at), .. } => objects_size(s, at).map(|n| (at, n)),
        _ => None,
    }
}

fn objects_size(s: &State, at: Frame) -> Option<u64> {
    if s.spaces.contains_key(&at) || s.threads.contains_key(&at) {
        return Some(2);
    }
    if s.vcpus.contains_key(&at) {
        return Some(s.machine.vcpu_frames);
    }
    if let Some(space) = s.cap_spaces.get(&at) {
        return Some((space.slots + 1) / 64);
    }
    Some(1)
}

/// What was made of a memory lies in the part of it that was handed out, and no two things made of
/// memory share a frame.
pub fn memory_is_accounted(s: &State) -> Holds {
    let mut families: BTreeMap<Option<Place>, Vec<(Frame, u64)>> = BTreeMap::new();
    let mut orphans = Vec::new();
    for (place, cap) in &s.caps {
        // Nothing can be made any more of a memory in a dead space; it may have held that very space.
        let dead = s.cap_spaces.get(&place.space).is_some_and(|c| c.dead);
        if dead && cap.kind() == Kind::Memory {
            continue;
        }
        if let Some(extent) = extent(s, cap) {
            families.entry(cap.parent).or_default().push(extent);
        } else if let What::Page { base, order, .. } = cap.what
            && let Some(parent) = cap.parent
            && s.at(parent).kind() == Kind::Memory
        {
            orphans.push((parent, base, base + (1 << (order - 12))));
        }
    }
    for (parent, from, to) in orphans {
        let siblings = families.get(&Some(parent)).into_iter().flatten();
        let mut apart = siblings.map(|(base, frames)| to <= *base || from >= base + frames);
        holds(apart.all(|apart| apart), || {
            format!("a frame at {from:#x} was used again while a copy is left")
        })?;
    }
    for (parent, mut extents) in families {
        extents.sort_unstable();
        for pair in extents.windows(2) {
            let apart = pair[0].0 + pair[0].1 <= pair[1].0;
            holds(apart, || format!("{pair:x?} of {parent:?} overlap"))?;
        }
        if let Some(parent) = parent
            && let What::Untyped { base, used, .. } = s.at(parent).what
        {
            let inside = extents
                .iter()
                .all(|(b, n)| *b >= base && b + n <= base + used);
            holds(inside, || {
                format!("something made of {parent:?} is outside it: {extents:x?}")
            })?;
        }
    }
    Ok(())
}

/// Objects of the core, tables of every kind and slots: no component, guest or device can touch
/// them. Two pages are shared on purpose, each through its own object's capability: a thread's
/// message buffer and a vCPU's state page.
pub fn kernel_frames_are_never_mapped(s: &State) -> Holds {
    let mut kernel: BTreeSet<Frame> = BTreeSet::new();
    for (at, (kind, frames)) in objects(s) {
        let shared = matches!(kind, Kind::Thread | Kind::Vcpu).then_some(at + 1);
        kernel.extend((at..at + frames).filter(|f| Some(*f) != shared));
    }
    for space in s.spaces.values() {
        kernel.extend(&space.frames);
    }
    for (at, space) in &s.spaces {
        for (address, leaf) in &space.leaves {
            let end = leaf.base + (1 << (leaf.order - 12));
            let hit = kernel.range(leaf.base..end).next();
            holds(hit.is_none(), || {
                format!("space {at:#x} maps frame {hit:x?} at {address:#x}")
            })?;
        }
    }
    Ok(())
}

/// Every translation is the mapping of exactly one capability that allows it, so a frame is writable
/// by two owners only if both were given it. Translations that no capability names were there when
/// the system began: the first component's own image and stack.
pub fn every_mapping_was_given(s: &State) -> Holds {
    let mut given = BTreeSet::new();
    for (place, cap) in &s.caps {
        let Some((space, address)) = cap.mapped else {
            continue;
        };
        let (base, order) = match cap.what {
            What::Page { base, order, .. } => (base, order),
            What::Object { at: Some(at), .. } => (at + 1, 12),
            _ => continue,
        };
        let leaf = s
            .spaces
            .get(&space)
            .and_then(|space| space.leaves.get(&address));
        let fits = leaf.is_some_and(|leaf| (leaf.base, leaf.order) == (base, order));
        holds(fits, || format!("{place:?} is not mapped as it says"))?;
        let access = leaf.map_or(0, |leaf| leaf.access);
        let page = matches!(cap.what, What::Page { .. });
        let allowed = if page {
            cap.allows(Rights(access as u8))
        } else {
            access & Map::EXECUTE == 0
        };
        holds(allowed, || format!("{place:?} does not allow {access}"))?;
        let once = given.insert((space, address));
        holds(once, || format!("two capabilities for {address:#x}"))?;
    }
    Ok(())
}

/// Tables hang together, each leaf has its path, and no frame is a table of two spaces.
pub fn tables_are_the_spaces_own(s: &State) -> Holds {
    let mut all = BTreeSet::new();
    for (at, space) in &s.spaces {
        for frame in &space.frames {
            holds(all.insert(*frame), || {
                format!("frame {frame:#x} is given twice")
            })?;
        }
        let enough = space.tables.len() <= space.frames.len();
        holds(enough, || format!("space {at:#x} uses more than it has"))?;
        let path = |address: u64, from: u64| {
            (from..4).all(|level| {
                let base = address & !((1u64 << (12 + 9 * level)) - 1);
                space.tables.contains(&(level, base))
            })
        };
        for (address, leaf) in &space.leaves {
            let level = (u64::from(leaf.order) - 12) / 9 + 1;
            holds(path(*address, level), || {
                format!("no path to {address:#x} of {at:#x}")
            })?;
        }
        for (level, base) in &space.tables {
            holds(path(*base, level + 1), || {
                format!("a table of {at:#x} hangs nowhere")
            })?;
        }
    }
    Ok(())
}

/// A scheduling context has one thread, which has it; and never more budget left than it was given.
pub fn time_is_bound_once(s: &State) -> Holds {
    for (at, sched) in &s.scheds {
        if let Some(thread) = sched.thread {
            let back = s.threads.get(&thread).and_then(|t| t.sched);
            holds(back == Some(*at), || {
                format!("{at:#x} is not what {thread:#x} runs on")
            })?;
        }
        let budget = sched.set.map_or(0, |[_, _, budget, _]| budget);
        holds(sched.remaining <= budget, || {
            format!("{at:#x} has more than its budget")
        })?;
    }
    for (at, thread) in &s.threads {
        if let Some(sched) = thread.sched {
            let back = s.scheds.get(&sched).and_then(|s| s.thread);
            holds(back == Some(*at), || {
                format!("{at:#x} runs on time that is not its own")
            })?;
        }
    }
    Ok(())
}

/// A thread is in exactly the queue that fits what it is doing, and runs on one CPU at most.
pub fn every_thread_is_where_it_says(s: &State) -> Holds {
    for (at, t) in &s.threads {
        let home = s.home_of(*at);
        let count = |queue: &[Frame]| queue.iter().filter(|f| *f == at).count();
        let ready: usize = s
            .cpus
            .iter()
            .flat_map(|cpu| cpu.ready.values())
            .map(|queue| count(queue))
            .sum();
        let endpoints: usize = s.endpoints.values().map(|e| count(&e.queue)).sum();
        let notifications: usize = s.notifications.values().map(|n| count(&n.queue)).sum();
        let expected = match &t.doing {
            Doing::Ready => (usize::from(home.is_some()), 0, 0),
            Doing::Sending { .. } | Doing::Receiving { at: Some(_) } => (0, 1, 0),
            Doing::Waiting { .. } => (0, 0, 1),
            _ => (0, 0, 0),
        };
        holds((ready, endpoints, notifications) == expected, || {
            format!(
                "{at:#x} is {:?} but queued {ready} {endpoints} {notifications}",
                t.doing
            )
        })?;
        let here = match &t.doing {
            Doing::Ready => home.is_none_or(|(cpu, priority)| {
                s.cpus[cpu]
                    .ready
                    .get(&priority)
                    .is_some_and(|q| count(q) == 1)
            }),
            Doing::Sending { endpoint, .. } => s
                .endpoints
                .get(endpoint)
                .is_some_and(|e| !e.receivers && count(&e.queue) == 1),
            Doing::Receiving { at: Some((e, _)) } => s
                .endpoints
                .get(e)
                .is_some_and(|e| e.receivers && count(&e.queue) == 1),
            Doing::Waiting { notification } => s
                .notifications
                .get(notification)
                .is_some_and(|n| count(&n.queue) == 1),
            Doing::Running => home.is_some_and(|(cpu, _)| s.cpus[cpu].current == Some(*at)),
            _ => true,
        };
        holds(here, || format!("{at:#x} is not where {:?} is", t.doing))?;
        let timed = t.deadline.is_none() || t.is_blocked() || t.doing == Doing::Throttled;
        holds(timed, || format!("{at:#x} has a deadline for nothing"))?;
        let currents = s.cpus.iter().filter(|cpu| cpu.current == Some(*at)).count();
        holds(currents <= 1, || format!("{at:#x} runs on two CPUs"))?;
    }
    Ok(())
}

/// No notification bit is lost: whoever could take bits has taken them.
pub fn no_bit_waits(s: &State) -> Holds {
    for (at, word) in &s.notifications {
        let receives = word
            .thread
            .is_some_and(|t| matches!(s.thread(t).doing, Doing::Receiving { .. }));
        let waits = !word.queue.is_empty() || receives;
        holds(word.bits == 0 || !waits, || {
            format!("bits of {at:#x} wait beside a thread that waits for them")
        })?;
    }
    Ok(())
}

/// A caller waits at exactly one reply object, which holds exactly it.
pub fn replies_match_callers(s: &State) -> Holds {
    for (at, reply) in &s.replies {
        if let Some(caller) = reply.caller {
            let waits = s
                .threads
                .get(&caller)
                .is_some_and(|t| matches!(t.doing, Doing::Awaiting { reply, .. } if reply == *at));
            holds(waits, || format!("{caller:#x} does not wait for {at:#x}"))?;
        }
        if let Some(receiver) = reply.receiver {
            let waits = s.threads.get(&receiver).is_some_and(
                |t| matches!(t.doing, Doing::Receiving { at: Some((_, r)) } if r == *at),
            );
            holds(waits, || format!("{receiver:#x} does not use {at:#x}"))?;
        }
        let both = reply.caller.is_some() && reply.receiver.is_some();
        holds(!both, || format!("{at:#x} is promised while it is used"))?;
    }
    for (at, t) in &s.threads {
        let held = match t.doing {
            Doing::Awaiting { reply, .. } => s.replies.get(&reply).map(|r| r.caller),
            Doing::Receiving { at: Some((_, r)) } => s.replies.get(&r).map(|r| r.receiver),
            _ => continue,
        };
        holds(held == Some(Some(*at)), || {
            format!("nobody will answer {at:#x}")
        })?;
    }
    Ok(())
}

/// Every name names something that exists, and bindings agree from both ends.
pub fn nothing_dangles(s: &State) -> Holds {
    let all = objects(s);
    let alive = |name: Option<Frame>, kind: Kind| {
        name.is_none_or(|at| all.get(&at).is_some_and(|(k, _)| *k == kind))
    };
    for (place, cap) in &s.caps {
        let fine = match cap.what {
            What::Object { kind, at, .. } => alive(at, kind),
            What::Tables { to, .. } => alive(to, Kind::AddressSpace),
            _ => true,
        };
        let mapped = cap.mapped.is_none_or(|(to, _)| match cap.kind() {
            Kind::IoPorts => s.threads.contains_key(&to) || s.vcpus.contains_key(&to),
            _ => s.spaces.contains_key(&to),
        });
        let lives = s.cap_spaces.contains_key(&place.space);
        holds(fine && mapped && lives, || {
            format!("{place:?} dangles: {cap:?}")
        })?;
    }
    for (at, t) in &s.threads {
        let run = match t.run {
            Run::In(vcpu) => Some(vcpu),
            _ => None,
        };
        let fine = alive(t.space, Kind::AddressSpace)
            && alive(t.caps, Kind::CapSpace)
            && alive(t.sched, Kind::SchedContext)
            && alive(t.bound, Kind::Notification)
            && alive(t.supervisor.map(|(n, _)| n), Kind::Notification)
            && alive(run, Kind::Vcpu)
            && t.bound
                .is_none_or(|n| s.notifications[&n].thread == Some(*at));
        holds(fine, || format!("thread {at:#x} dangles: {t:?}"))?;
        let ports: usize = s
            .caps
            .values()
            .filter(|c| c.kind() == Kind::IoPorts && c.mapped.is_some_and(|(to, _)| to == *at))
            .count();
        holds(ports == t.ports.len(), || {
            format!("{at:#x} has ports that no capability granted")
        })?;
    }
    for (at, n) in &s.notifications {
        let fine = alive(n.thread, Kind::Thread) && alive(n.vcpu, Kind::Vcpu);
        let back = n.thread.is_none_or(|t| s.thread(t).bound == Some(*at))
            && n.vcpu.is_none_or(|v| s.vcpus[&v].notification == Some(*at));
        holds(fine && back, || format!("notification {at:#x} dangles"))?;
    }
    for (at, v) in &s.vcpus {
        let fine = alive(v.space, Kind::AddressSpace) && alive(v.notification, Kind::Notification);
        holds(fine, || format!("vCPU {at:#x} dangles"))?;
        let runs = s.threads.values().filter(|t| t.run == Run::In(*at)).count();
        holds(runs == usize::from(v.running.is_some()), || {
            format!("vCPU {at:#x} is run {runs} times")
        })?;
    }
    for (number, line) in &s.lines {
        let fine = s.caps.contains_key(&line.owner)
            && alive(line.to.map(|(to, _)| to), Kind::Notification);
        holds(fine, || format!("line {number} dangles"))?;
    }
    for (function, d) in &s.devices {
        let owner = s.caps.get(&d.owner).is_some_and(|cap| {
            matches!(cap.what, What::Range { kind: Kind::Device, first, count: 1, .. } if first == *function)
                && cap.mapped == Some((d.space, 0))
        });
        let dma = s
            .spaces
            .get(&d.space)
            .is_some_and(|s| s.kind == SpaceKind::Dma);
        let fine = owner && dma && alive(d.tell.map(|(to, _)| to), Kind::Notification);
        holds(fine, || {
            format!("function {function:#x} reaches what it was not given")
        })?;
    }
    for (line, source) in &s.sources {
        let names = [(source.interrupt, *line), (source.device, source.function)];
        let fine = names.iter().all(|(place, number)| {
            s.caps.get(place).is_some_and(
                |cap| matches!(cap.what, What::Range { first, count: 1, .. } if first == *number),
            )
        });
        holds(fine, || format!("message {line} is sent by nobody's right"))?;
    }
    for cpu in &s.cpus {
        holds(alive(cpu.current, Kind::Thread), || "a CPU dangles".into())?;
    }
    Ok(())
}

/// Of one step: each new capability was derived from one that was there, in the caller's reach or in
/// that of a thread whose message it took or gave; nothing else got new authority.
pub fn new_capabilities_come_from_old_ones(before: &State, after: &State) -> Holds {
    let old: BTreeSet<&Place> = before.caps.keys().collect();
    let moved = before.caps.len() == after.caps.len();
    for (place, cap) in after.caps.iter().filter(|(p, _)| !old.contains(p)) {
        let fine = moved || place.slot == 0 || cap.parent.is_some_and(|p| old.contains(&p));
        holds(fine, || format!("{place:?} came from nowhere: {cap:?}"))?;
    }
    Ok(())
}
