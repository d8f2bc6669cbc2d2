use super::*;
use proptest::prelude::*;

const CLOCK: Clock = Clock::new(1_000_000);

fn enabled() -> LocalApic {
    let mut apic = LocalApic::new(0, true, CLOCK);
    assert_eq!(apic.mmio_write(0xf0, 0x1ff, 0), Effect::Rerouted);
    apic
}

#[test]
fn higher_class_outranks_what_is_in_service() {
    let mut apic = enabled();
    apic.request(0x31, false);
    assert_eq!(apic.pending(), Some(0x31));
    apic.acknowledge(0x31);
    apic.request(0x35, false);
    assert_eq!(apic.pending(), None, "same class waits");
    apic.request(0x41, false);
    assert_eq!(apic.pending(), Some(0x41));
    apic.acknowledge(0x41);
    let _ = apic.mmio_write(0xb0, 0, 0);
    assert_eq!(apic.pending(), None);
    let _ = apic.mmio_write(0xb0, 0, 0);
    assert_eq!(apic.pending(), Some(0x35));
}

#[test]
fn task_priority_holds_its_class_back() {
    let mut apic = enabled();
    apic.request(0x55, false);
    apic.set_task_priority(0x50);
    assert_eq!(apic.pending(), None);
    apic.set_task_priority(0x4f);
    assert_eq!(apic.pending(), Some(0x55));
}

#[test]
fn software_disabled_apic_delivers_when_it_is_enabled() {
    let mut apic = LocalApic::new(0, true, CLOCK);
    let ipi = Ipi::from_icr(0x55 | 2 << 18, 0, false, 1).unwrap();
    assert!(!apic.route().accepts(&ipi));
    apic.request(0x55, false);
    assert_eq!(apic.pending(), None);
    assert_eq!(apic.mmio_write(0xf0, 0x1ff, 0), Effect::Rerouted);
    assert_eq!(apic.pending(), Some(0x55));
    assert!(apic.route().accepts(&ipi));
}

#[test]
fn illegal_mode_changes_fault() {
    let mut apic = LocalApic::new(3, false, CLOCK);
    let base = BASE_ADDRESS;
    assert!(apic.write_base(base | BASE_X2APIC).is_err());
    assert!(apic.write_base(0xfee0_1000 | BASE_ENABLE).is_err());
    assert!(
        apic.msr_read(0x802, 0).is_err(),
        "no x2APIC registers in xAPIC mode"
    );
    assert_eq!(
        apic.write_base(base | BASE_ENABLE | BASE_X2APIC),
        Ok(Effect::Rerouted)
    );
    assert_eq!(apic.msr_read(0x802, 0), Ok(3));
    assert_eq!(apic.msr_read(0x80d, 0), Ok(1 << 3));
    assert!(apic.write_base(base | BASE_ENABLE).is_err());
    assert_eq!(apic.write_base(base), Ok(Effect::Rerouted));
    assert!(apic.write_base(base | BASE_ENABLE | BASE_X2APIC).is_err());
}

#[test]
fn one_shot_fires_once_and_counts_down() {
    let mut apic = enabled();
    let _ = apic.mmio_write(0x320, 0x40, 0);
    let _ = apic.mmio_write(0x3e0, 0xb, 0);
    let _ = apic.mmio_write(0x380, 1000, 0);
    assert_eq!(apic.deadline(), Some(10_000));
    assert_eq!(apic.mmio_read(0x390, 4_000), 600);
    apic.advance(9_999);
    assert_eq!(apic.pending(), None);
    apic.advance(10_000);
    assert_eq!(apic.pending(), Some(0x40));
    assert_eq!(apic.deadline(), None);
    assert_eq!(apic.mmio_read(0x390, 10_001), 0);
}

#[test]
fn periodic_skips_missed_periods() {
    let mut apic = enabled();
    let _ = apic.mmio_write(0x320, 0x2_0040, 0);
    let _ = apic.mmio_write(0x3e0, 0xb, 0);
    let _ = apic.mmio_write(0x380, 10_000, 0);
    apic.advance(350_000);
    assert_eq!(apic.deadline(), Some(400_000));
}

#[test]
fn tsc_deadline_needs_its_mode_and_clears_itself() {
    let mut apic = enabled();
    apic.set_tsc_deadline(500, 0);
    assert_eq!(apic.tsc_deadline(0), 0);
    let _ = apic.mmio_write(0x320, 0x4_0040, 0);
    apic.set_tsc_deadline(500, 0);
    assert_eq!(apic.tsc_deadline(0), 500);
    assert_eq!(apic.deadline(), Some(500));
    apic.advance(500);
    assert_eq!(apic.pending(), Some(0x40));
    assert_eq!(apic.tsc_deadline(501), 0);
    apic.set_tsc_deadline(100, 600);
    assert!(
        apic.is_requested(0x40).0,
        "a deadline in the past fires at once"
    );
}

#[test]
fn init_and_startup_reach_only_the_addressed() {
    let mut apic = enabled();
    let _ = apic.mmio_write(0x310, 1 << 24, 0);
    let Effect::Ipi(init) = apic.mmio_write(0x300, 0xc500, 0) else {
        panic!("INIT is an effect");
    };
    assert_eq!(init.delivery, Delivery::Init);
    let one = LocalApic::new(1, false, CLOCK).route();
    let two = LocalApic::new(2, false, CLOCK).route();
    assert!(one.accepts(&init) && !two.accepts(&init));
    assert_eq!(apic.mmio_write(0x300, 0x8500, 0), Effect::None, "de-assert");
    let Effect::Ipi(startup) = apic.mmio_write(0x300, 0x699, 0) else {
        panic!("SIPI is an effect");
    };
    assert_eq!(startup.delivery, Delivery::Startup(0x99));
}

#[test]
fn logical_destinations_follow_model_and_mode() {
    let flat = Route::new(1, Mode::XApic, 0x1ff, 0x0200_0000, u32::MAX);
    let ipi = |low, destination, x2| Ipi::from_icr(low, destination, x2, 0).unwrap();
    assert!(flat.accepts(&ipi(0x841, 0x03, false)));
    assert!(!flat.accepts(&ipi(0x841, 0x01, false)));
    let cluster = Route::new(1, Mode::XApic, 0x1ff, 0x1200_0000, 0x0fff_ffff);
    assert!(cluster.accepts(&ipi(0x841, 0x13, false)));
    assert!(!cluster.accepts(&ipi(0x841, 0x23, false)));
    let x2 = Route::new(0x13, Mode::X2Apic, 0x1ff, 0, u32::MAX);
    assert!(x2.accepts(&ipi(0x841, 0x1_0008, true)));
    assert!(!x2.accepts(&ipi(0x841, 0x0_0008, true)));
    assert!(x2.accepts(&ipi(0x41 | 3 << 18, 0, true)), "all but self");
    assert!(!Route::new(0, Mode::X2Apic, 0x1ff, 0, 0).accepts(&ipi(0x41 | 3 << 18, 0, true)));
}

#[test]
fn self_ipi_stays_here_and_bad_vectors_are_errors() {
    let mut apic = enabled();
    let _ = apic.mmio_write(0x370, 0xfe, 0);
    assert_eq!(apic.mmio_write(0x300, 0x4_0041, 0), Effect::None);
    assert_eq!(apic.pending(), Some(0x41));
    assert_eq!(apic.mmio_write(0x300, 0x4_0003, 0), Effect::None);
    assert_eq!(apic.pending(), Some(0xfe));
    let _ = apic.mmio_write(0x280, 0, 0);
    assert_eq!(apic.mmio_read(0x280, 0), 1 << 5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_sequence_of_accesses_keeps_the_summaries_true(
        ops in prop::collection::vec((any::<u8>(), any::<u16>(), any::<u64>()), 1..200)
    ) {
        let mut apic = enabled();
        let mut now = 0u64;
        for (kind, register, value) in ops {
            now = now.wrapping_add(value & 0xffff);
            match kind % 7 {
                0 => { let _ = apic.mmio_write(u32::from(register) & 0xff0, value as u32, now); }
                1 => { apic.mmio_read(u32::from(register) & 0xfff, now); }
                2 => { let _ = apic.msr_write(0x800 + (u32::from(register) & 0x3ff), value, now); }
                3 => { let _ = apic.msr_read(0x800 + (u32::from(register) & 0x3ff), now); }
                4 => { let _ = apic.write_base(BASE_ADDRESS | value & 0xd00); }
                5 => { apic.request(register as u8, value & 1 != 0); }
                _ => { if let Some(vector) = apic.pending() { apic.acknowledge(vector); } }
            }
            apic.advance(now);
            prop_assert_eq!(apic.irr_top, apic.irr.highest().unwrap_or(0));
            prop_assert_eq!(apic.isr_top, apic.isr.highest().unwrap_or(0));
        }
    }
}
