//! The table of system calls. Call numbers, argument names and results are written once, here;
//! the core dispatches on it and `docs/` lists it.

macro_rules! calls {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal ($($arg:ident),*) -> ($($result:ident),*);)*) => {
        /// A system call's number, passed in `rax`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u64)]
        pub enum Call { $($(#[doc = $doc])* $name = $number,)* }

        impl Call {
            /// The call with this number, if there is one.
            #[inline]
            pub const fn from_raw(number: u64) -> Option<Call> {
                match number { $($number => Some(Call::$name),)* _ => None }
            }
        }

        /// One row of the call table, for documentation and for tests that cover every call.
        #[derive(Clone, Copy, Debug)]
        pub struct CallInfo {
            /// The call.
            pub call: Call,
            /// Its name.
            pub name: &'static str,
            /// Its arguments, in register order.
            pub arguments: &'static [&'static str],
            /// Its result words, in register order.
            pub results: &'static [&'static str],
            /// What it does.
            pub doc: &'static [&'static str],
        }

        /// Every call, in order of number.
        pub const CALLS: &[CallInfo] = &[$(CallInfo {
            call: Call::$name,
            name: stringify!($name),
            arguments: &[$(stringify!($arg)),*],
            results: &[$(stringify!($result)),*],
            doc: &[$($doc),*],
        },)*];
    };
}

calls! {
    /// Makes `count` objects of `kind` out of a `Memory`, one capability each, in consecutive
    /// slots from `slot` of `space`. `size` is: for `Frame` the order (12, 21 or 30); for
    /// `Memory`, `CapSpace` (at most 4096) and `Tables` (at most 512) a number of frames; for
    /// `AddressSpace` a `SpaceKind`;
    /// otherwise 0. Bounded: may make fewer than asked, answers `Ok` with `done`; `Again` means
    /// that work was done (a large frame or capability space is being zeroed) but no capability is
    /// ready yet.
    /// `kind_size` is `kind | size << 8`, `slot_count` is `slot | count << 32`.
    Retype = 1 (memory, kind_size, space, slot_count) -> (done);
    /// Makes a child of `source` in `slot` of `space` with at most its rights. `badge` sets the
    /// badge of an unbadged `Endpoint` or `Notification`; for a `Frame` it is the byte offset of a
    /// sub-range of order `order` (0: all of it); for `IoPorts`, `Interrupt`, `Device` and `Cpu` it
    /// is `first | count << 32` (0: all of it), and for `Cpu` `order` is the highest priority.
    Copy = 2 (source, space, slot, rights, badge, order) -> ();
    /// Moves a capability, with its place in the derivation forest, to an empty slot.
    Move = 3 (source_space, source, space, slot) -> ();
    /// Deletes a capability and all derived from it. `Again`: call again, progress was made.
    /// `Timeout`: something of it is in the hands of an IOMMU that does not answer any more, and stays
    /// out of use.
    Delete = 4 (space, slot) -> ();
    /// Deletes all that was derived from a capability, but not itself. `Again` as in `Delete`.
    Revoke = 5 (space, slot) -> ();
    /// Maps what a capability names at `address`: a `Frame` at its own size, a `Thread`'s message
    /// buffer or a `Vcpu`'s state page at 4 KiB. `flags` is a `cap::Map` set. `NeedTable` answers
    /// the `level` whose table is missing and changes nothing.
    Map = 6 (cap, space, address, flags) -> (level);
    /// Undoes the mapping recorded in the capability. `Again`: the IOMMU has still to answer, call
    /// again; `Timeout`: it does not answer any more, and the memory stays out of use.
    Unmap = 7 (cap) -> ();
    /// Gives the frames of a `Tables` capability to an address space's pool of page tables.
    Fill = 8 (space, tables) -> ();
    /// Sets a stopped thread's address space, capability space, entry point, stack and first
    /// argument.
    ThreadConfigure = 9 (thread, address_space, cap_space, entry, stack, argument) -> ();
    /// One of `thread::Op`: resume, suspend, cancel the blocking call it is in, or write its
    /// `thread::Report` into the caller's message buffer.
    ThreadControl = 10 (thread, op) -> ();
    /// Sets a scheduling context: CPU `cpu` of a `Cpu` capability, `priority`, and `budget` per
    /// `period` in TSC ticks (equal: no limit). A thread bound to it moves there at once, whatever it
    /// is doing, with the vCPU that it runs.
    SchedSet = 11 (sched, cpus, cpu, priority, budget, period) -> ();
    /// Ties `what` to `to`, or unties it when `to` is 0: a `SchedContext` to a `Thread`; a
    /// `Notification` to a `Thread` (its faults and bound messages), to a `Vcpu` (a run returns
    /// while bits are pending) or an `Interrupt` to a `Notification` (with the badge of that
    /// capability). An `Endpoint` is only untied: from its server, before that is replaced.
    /// A `Device` to a *dma* `AddressSpace`, an `Interrupt` to a `Device`, a `Notification` to a
    /// `Device`. `Again` and `Timeout` as in `Unmap`.
    /// `role` is a `cap::Role`.
    Bind = 12 (what, to, role) -> ();
    /// Sends a message and waits for the answer. `w0..w3` travel in registers both ways.
    Call = 13 (endpoint, info, w0, w1, w2, w3) -> (badge, info, w0, w1, w2, w3);
    /// Waits for a message, or for bits of the notification bound to this thread, until
    /// `deadline`. `reply` names the `Reply` object that will answer the caller (0 is allowed if
    /// only bound notifications are expected). A notification arrives as `badge` = 0,
    /// `info` = `MessageInfo::NOTIFICATION`, `w0` = bits. Where both wait, they take turns.
    Receive = 14 (endpoint, reply, deadline) -> (badge, info, w0, w1, w2, w3);
    /// Answers the caller that `reply` holds.
    Reply = 15 (reply, info, w0, w1, w2, w3) -> ();
    /// `Reply`, then `Receive` with no deadline on the same `reply`, in one step.
    /// `endpoint_reply` is `endpoint | reply << 32`. A reply that cannot be delivered is dropped.
    ReplyReceive = 16 (endpoint_reply, info, w0, w1, w2, w3) -> (badge, info, w0, w1, w2, w3);
    /// Sets bits of a notification: the capability's badge, or `bits` when it has none.
    Signal = 17 (notification, bits) -> ();
    /// Takes all bits of a notification, waiting until one is set or `deadline` (absolute TSC)
    /// passes: `Timeout`. One that has passed before, other than `NOW`, also ends the caller's turn:
    /// others of its priority on its CPU run first.
    Wait = 18 (notification, deadline) -> (bits);
    /// Runs a vCPU on this thread until it exits; the state page tells why.
    VcpuRun = 19 (vcpu) -> ();
    /// One of `vcpu::Op`.
    VcpuControl = 20 (vcpu, op, a, b, c) -> (result);
    /// One of `cap::InterruptOp` on interrupt `line` of an `Interrupt` capability.
    InterruptControl = 21 (interrupt, line, op) -> ();
    /// Lets a `Thread` or a `Vcpu` use the ports of an `IoPorts` capability directly, until that is
    /// deleted.
    PortsGrant = 22 (ports, to) -> ();
    /// What is in a slot, an empty one included, as `cap::Slot` reads it: `what` is kind, rights,
    /// order and whether it is mapped; `number` and `more` depend on the kind.
    Inspect = 23 (space, slot) -> (what, number, more);
}
