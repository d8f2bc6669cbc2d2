//! What goes wrong, where: a plan that a simulated system carries out, the same every time.
//! Made by tests and by [`crate::sweep()`]; read by the kit's system calls. The errors that components
//! see are made by the sdk's own code out of what the plan does below it.

use microvisor_abi::Status;

/// A place in a run, counted from 0 and over all instances of a component.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Site {
    /// The n-th call that `client` makes on its wires to `interface`. The first is that of
    /// `connect`.
    Call {
        /// Component that calls.
        client: String,
        /// What it calls.
        interface: String,
        /// Which one.
        number: u64,
    },
    /// The n-th system call of a component, whatever it is.
    SystemCall {
        /// Component that makes it.
        component: String,
        /// Which one.
        number: u64,
    },
}

/// What happens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The server dies when it has taken the request and before it does anything. The caller hears
    /// `Restarted` if the server is started again, and `Aborted` if not.
    DieBefore,
    /// The server dies when it has carried the request out and before it answers; as above.
    DieAfter,
    /// The request's bytes are damaged on the way, as a hostile client would send them.
    Request(Mangle),
    /// The answer's bytes are damaged, as a hostile server would send them.
    Answer(Mangle),
    /// The server has no room for the capabilities: the caller hears `CapsRefused`, the server
    /// nothing.
    CapsRefused,
    /// The caller is cancelled while it waits: it hears `Cancelled`; the server carries the request
    /// out, and its answer finds nobody.
    Cancel,
    /// The answer comes so many ticks of the clock later.
    Delay(u64),
    /// The server is of another version: its schema hash differs. Only calls of `connect`.
    OtherSchema,
    /// The server's own notification gets these bits, without a reason, before the request.
    Spurious(u64),
    /// The component dies in this system call, before it has any effect.
    Die,
    /// The core answers this instead of carrying the system call out, for instance `NoMemory`.
    Refuse(Status),
}

/// How bytes are damaged. The capabilities beside them stay, but for [`Mangle::DropCaps`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mangle {
    /// The last byte is missing.
    Truncate,
    /// Nothing is left.
    Empty,
    /// Bytes follow up to the largest message there is.
    Oversize,
    /// The bytes are exchanged for random ones, of this seed.
    Random(u64),
    /// The capabilities are left out.
    DropCaps,
    /// The label is that of no method, or of no answer.
    Label,
}

impl Mangle {
    /// One of each.
    pub const ALL: [Mangle; 6] = [
        Mangle::Truncate,
        Mangle::Empty,
        Mangle::Oversize,
        Mangle::Random(1),
        Mangle::DropCaps,
        Mangle::Label,
    ];
}

impl Fault {
    /// What can go wrong with any call.
    pub fn of_calls() -> Vec<Fault> {
        let mut all = vec![
            Fault::DieBefore,
            Fault::DieAfter,
            Fault::CapsRefused,
            Fault::Cancel,
            Fault::Delay(1 << 40),
            Fault::OtherSchema,
            Fault::Spurious(u64::MAX >> 4),
        ];
        all.extend(Mangle::ALL.map(Fault::Request));
        all.extend(Mangle::ALL.map(Fault::Answer));
        all
    }
}

/// Which faults a run has. Each happens once.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    faults: Vec<(Site, Fault)>,
}

impl Plan {
    /// Nothing goes wrong.
    pub fn new() -> Plan {
        Plan::default()
    }

    /// `fault` happens at `site`, too.
    pub fn with(mut self, site: Site, fault: Fault) -> Plan {
        self.faults.push((site, fault));
        self
    }

    /// `fault` in the n-th call of `client` to `interface`.
    pub fn call(self, client: &str, interface: &str, number: u64, fault: Fault) -> Plan {
        let (client, interface) = (client.into(), interface.into());
        let site = Site::Call {
            client,
            interface,
            number,
        };
        self.with(site, fault)
    }

    /// `fault` in the n-th system call of `component`.
    pub fn system_call(self, component: &str, number: u64, fault: Fault) -> Plan {
        let component = component.into();
        self.with(Site::SystemCall { component, number }, fault)
    }

    /// `count` faults at `sites` (see [`crate::System::sites`]), chosen by `seed`: the same for the
    /// same arguments.
    pub fn seeded(seed: u64, sites: &[Site], count: usize) -> Plan {
        let mut random = Random(seed);
        let calls = Fault::of_calls();
        let mut plan = Plan::new();
        for _ in 0..count {
            let Some(site) = random.choose(sites) else {
                break;
            };
            let fault = match site {
                Site::Call { .. } => random.choose(&calls).copied().unwrap_or(Fault::DieBefore),
                Site::SystemCall { .. } => Fault::Die,
            };
            plan = plan.with(site.clone(), fault);
        }
        plan
    }

    /// The faults that have not happened.
    pub(crate) fn take(&mut self, site: &Site) -> Vec<Fault> {
        let (now, later) = self
            .faults
            .drain(..)
            .partition(|(planned, _)| planned == site);
        self.faults = later;
        let now: Vec<(Site, Fault)> = now;
        now.into_iter().map(|(_, fault)| fault).collect()
    }

    /// What has not happened yet: a run that never came to a place leaves it.
    pub fn left(&self) -> &[(Site, Fault)] {
        &self.faults
    }
}

/// splitmix64 (Steele et al. 2014).
pub(crate) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn choose<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        let at = self.next() % (of.len().max(1) as u64);
        of.get(at as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_plan() {
        let sites: Vec<Site> = (0..9)
            .map(|number| Site::SystemCall {
                component: "a".into(),
                number,
            })
            .collect();
        let plan = |seed| format!("{:?}", Plan::seeded(seed, &sites, 4));
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }

    #[test]
    fn a_fault_happens_once() {
        let mut plan = Plan::new().call("a", "bench", 2, Fault::Cancel);
        let site = plan.left()[0].0.clone();
        assert_eq!(plan.take(&site), [Fault::Cancel]);
        assert!(plan.take(&site).is_empty() && plan.left().is_empty());
    }
}
