//! The library over made-up configuration spaces: a plausible machine, and hostile ones.

use idl::manifest::Selector;
use idl::pci::{Bar, PciError};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use crate::acpi::{self, AcpiError, Physical, Window};
use crate::config::{Config, Id, port_address, window_offset};
use crate::enumerate::{Found, assign, functions};
use crate::function::{self, Function, capabilities};
use crate::message::{Message, MsiX, Write};

/// Functions with their registers; a register's mask says which bits take writes.
#[derive(Default)]
struct Fake {
    functions: BTreeMap<u16, Vec<u32>>,
    masks: BTreeMap<(u16, u16), u32>,
    /// How often a register was accessed: a walk without end would never end this count.
    accesses: usize,
}

impl Config for Fake {
    fn read(&mut self, id: Id, offset: u16) -> u32 {
        self.accesses += 1;
        assert!(offset.is_multiple_of(4) && offset < 4096);
        let registers = self.functions.get(&id.0);
        registers.map_or(u32::MAX, |r| r[usize::from(offset / 4)])
    }
    fn write(&mut self, id: Id, offset: u16, value: u32) {
        self.accesses += 1;
        assert!(offset.is_multiple_of(4) && offset < 4096);
        let mask = self.masks.get(&(id.0, offset)).copied().unwrap_or(u32::MAX);
        if let Some(registers) = self.functions.get_mut(&id.0) {
            let register = &mut registers[usize::from(offset / 4)];
            *register = *register & !mask | value & mask;
        }
    }
}

const DISK: Id = Id::new(1, 3, 0);

impl Fake {
    fn add(&mut self, id: Id, ids: u32, class: u32, header: u32) -> &mut Vec<u32> {
        let mut registers = vec![0; 1024];
        registers[0] = ids;
        registers[2] = class << 8;
        registers[3] = header << 16;
        self.functions.entry(id.0).or_insert(registers)
    }

    /// A host bridge, a bridge to bus 1, a function with two parts, and a disk behind the bridge.
    fn machine() -> Fake {
        let mut fake = Fake::default();
        fake.add(Id::new(0, 0, 0), 0x29c0_8086, 0x060000, 0);
        fake.add(Id::new(0, 2, 0), 0x0001_1b36, 0x060400, 1)[6] = 0x01_01_00;
        fake.add(Id::new(0, 31, 0), 0x2918_8086, 0x060100, 0x80);
        fake.add(Id::new(0, 31, 2), 0x2922_8086, 0x010601, 0x80);
        let disk = fake.add(DISK, 0x1042_1af4, 0x010000, 0);
        disk[1] = 1 << 20 | 7;
        // 64-bit memory of 16 KiB at 0xc_0000_4000, memory of 4 KiB at 0xfebd_0000, 64 ports.
        disk[4] = 0x0000_400c;
        disk[5] = 0xc;
        disk[6] = 0xfebd_0000;
        disk[7] = 0xc041;
        disk[13] = 0x98;
        // MSI-X at 0x98: 3 entries, in register 2; a vendor capability at 0x84, 16 bytes long.
        disk[0x98 / 4] = 2 << 16 | 0x8411;
        disk[0x98 / 4 + 1] = 2;
        disk[0x98 / 4 + 2] = 0x802;
        disk[0x84 / 4] = 0x0110_0009;
        disk[0x84 / 4 + 1] = 4;
        for (offset, mask) in [
            (0x10, 0xffff_c000),
            (0x14, u32::MAX),
            (0x18, 0xffff_f000),
            (0x1c, 0xffff_ffc0),
            (0x20, 0),
            (0x24, 0),
            (0x04, 0x0407),
            (0x98, 0xc000_0000),
        ] {
            fake.masks.insert((DISK.0, offset), mask);
        }
        fake
    }

    fn carry_out(&mut self, id: Id, table: &mut BTreeMap<u64, u32>, writes: &[Write]) {
        for write in writes {
            match *write {
                Write::Config { offset, value } => self.write(id, offset, value),
                Write::Table { offset, value } => {
                    table.insert(offset, value);
                }
            }
        }
    }
}

#[test]
fn everything_behind_bridges_is_found_once() {
    let mut fake = Fake::machine();
    let ids: Vec<u16> = functions(&mut fake, |_| true)
        .iter()
        .map(|f| f.id.0)
        .collect();
    assert_eq!(ids, [0x0000, 0x0010, 0x00f8, 0x00fa, 0x0118]);
    // A bridge that leads back to its own bus, and one to a bus without configuration space.
    fake.functions.get_mut(&0x10).unwrap()[6] = 0;
    assert_eq!(functions(&mut fake, |_| true).len(), 4);
    fake.functions.get_mut(&0x10).unwrap()[6] = 1 << 8;
    assert_eq!(functions(&mut fake, |bus| bus == 0).len(), 4);
}

#[test]
fn registers_are_sized_and_keep_their_addresses() {
    let mut fake = Fake::machine();
    let before = fake.functions[&DISK.0].clone();
    let disk = Function::read(&mut fake, DISK);
    assert_eq!(disk.bars[0].bar, Bar::Memory { bytes: 16384 });
    assert_eq!(disk.bars[0].base, 0xc_0000_4000);
    assert_eq!(disk.bars[1].bar, Bar::None);
    assert_eq!(disk.bars[2].bar, Bar::Memory { bytes: 4096 });
    assert_eq!(disk.bars[3].bar, Bar::Ports { count: 64 });
    assert_eq!(disk.bars[4].bar, Bar::None);
    assert_eq!(fake.functions[&DISK.0], before);
}

#[test]
fn a_64_bit_register_of_4_gib_and_more_is_sized() {
    let mut fake = Fake::machine();
    let disk = fake.functions.get_mut(&DISK.0).unwrap();
    (disk[4], disk[5]) = (0xc, 0x10);
    fake.masks.insert((DISK.0, 0x10), 0);
    fake.masks.insert((DISK.0, 0x14), 0xffff_fffe);
    let disk = Function::read(&mut fake, DISK);
    assert_eq!(disk.bars[0].bar, Bar::Memory { bytes: 8 << 30 });
    assert_eq!(disk.bars[0].base, 0x10 << 32);
}

#[test]
fn pages_of_the_message_table_are_not_handed_out() {
    let disk = Function::read(&mut Fake::machine(), DISK);
    assert_eq!(disk.page(0, 0), Ok(0xc_0000_4000));
    assert_eq!(disk.page(0, 3), Ok(0xc_0000_7000));
    assert_eq!(disk.page(0, 4), Err(PciError::NoSuch));
    assert_eq!(disk.page(0, u32::MAX), Err(PciError::NoSuch));
    assert_eq!(disk.page(1, 0), Err(PciError::NoSuch));
    assert_eq!(disk.page(2, 0), Err(PciError::Reserved));
    assert_eq!(disk.page(3, 0), Err(PciError::NoSuch));
    assert_eq!(disk.page(6, 0), Err(PciError::NoSuch));
}

#[test]
fn a_small_register_beside_the_message_table_is_not_handed_out_either() {
    let mut fake = Fake::machine();
    let disk = fake.functions.get_mut(&DISK.0).unwrap();
    // 256 bytes in the page that register 2's table is in.
    disk[0x98 / 4 + 2] = 0x402;
    disk[8] = 0xfebd_0f00;
    fake.masks.insert((DISK.0, 0x20), 0xffff_ff00);
    fake.masks.insert((DISK.0, 0x18), 0xffff_f800);
    let disk = Function::read(&mut fake, DISK);
    assert_eq!(disk.bars[4].bar, Bar::Memory { bytes: 256 });
    assert_eq!(disk.page(4, 0), Err(PciError::Reserved));
}

#[test]
fn a_message_is_written_while_its_entry_is_masked() {
    let mut fake = Fake::machine();
    let msix: MsiX = Function::read(&mut fake, DISK).msix.unwrap();
    assert_eq!(
        (msix.entries, msix.table, msix.pending),
        (3, (2, 0), (2, 0x800))
    );
    let mut table = BTreeMap::new();
    fake.carry_out(DISK, &mut table, &msix.off());
    let all: Vec<u32> = table.values().copied().collect();
    assert_eq!(all, [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]);
    assert_eq!(fake.read(DISK, 0x98) >> 30, 0);
    let message = Message {
        address: 0xfee0_1000,
        data: 0x41,
    };
    let writes = msix.on(1, message).unwrap();
    let position = |wanted: &Write| writes.iter().position(|write| write == wanted).unwrap();
    let masked = position(&Write::Table {
        offset: 28,
        value: 1,
    });
    let data = position(&Write::Table {
        offset: 24,
        value: 0x41,
    });
    let open = position(&Write::Table {
        offset: 28,
        value: 0,
    });
    assert!(masked < data && data < open);
    fake.carry_out(DISK, &mut table, &writes);
    let entry: Vec<u32> = (16..32).step_by(4).map(|offset| table[&offset]).collect();
    assert_eq!(entry, [0xfee0_1000, 0, 0x41, 0]);
    // The others stay masked, and the function may send.
    assert_eq!((table[&12], table[&44]), (1, 1));
    assert_eq!(fake.read(DISK, 0x98) >> 30, 2);
    assert_eq!(msix.on(3, message), None);
}

#[test]
fn msi_has_its_data_behind_a_wide_address() {
    let mut fake = Fake::machine();
    let disk = fake.functions.get_mut(&DISK.0).unwrap();
    disk[0x98 / 4] = 0x0080_0005 | 3 << 17;
    let msi = Function::read(&mut fake, DISK).msi.unwrap();
    let message = Message {
        address: 0xfee0_0000,
        data: 0x52,
    };
    fake.masks.remove(&(DISK.0, 0x98));
    fake.carry_out(DISK, &mut BTreeMap::new(), &msi.on(message));
    let registers: Vec<u32> = (0..4).map(|n| fake.read(DISK, 0x98 + 4 * n)).collect();
    assert_eq!(registers[1..], [0xfee0_0000, 0, 0x52]);
    assert_eq!(registers[0] >> 16 & 0xff, 0x87);
}

#[test]
fn a_function_is_quiet_until_it_may_use_the_bus() {
    let mut fake = Fake::machine();
    assert!(function::uses_bus(&mut fake, DISK));
    function::set_bus(&mut fake, DISK, false);
    assert_eq!(fake.read(DISK, 4) & 0xffff, 0x402);
    let disk = Function::read(&mut fake, DISK);
    assert_eq!(disk.silence, [MsiX::switched_off(0x98, 0x0002_8411)]);
    function::set_bus(&mut fake, DISK, true);
    assert_eq!(fake.read(DISK, 4) & 0xffff, 0x406);
}

#[test]
fn a_reset_puts_back_what_firmware_set() {
    let mut fake = Fake::machine();
    fake.functions.get_mut(&DISK.0).unwrap()[0x98 / 4] = 0x10;
    fake.functions.get_mut(&DISK.0).unwrap()[0x98 / 4 + 1] = 1 << 28;
    fake.masks.remove(&(DISK.0, 0x98));
    let disk = Function::read(&mut fake, DISK);
    let express = disk.reset.unwrap();
    let saved = function::begin_reset(&mut fake, DISK, express);
    assert_eq!(fake.read(DISK, 0xa0) >> 15 & 1, 1);
    let before = fake.functions[&DISK.0][4..10].to_vec();
    fake.functions.get_mut(&DISK.0).unwrap()[4..10].fill(0);
    assert!(function::end_reset(&mut fake, DISK, &saved));
    // What takes no writes stays as it is.
    assert_eq!(
        fake.functions[&DISK.0][4] & 0xffff_c000,
        before[0] & 0xffff_c000
    );
    assert_eq!(fake.functions[&DISK.0][5], before[1]);
    fake.functions.remove(&DISK.0);
    assert!(!function::end_reset(&mut fake, DISK, &saved));
}

#[test]
fn a_vendor_capability_ends_where_it_says() {
    let mut fake = Fake::machine();
    let disk = Function::read(&mut fake, DISK);
    let bytes = disk.vendor_bytes(&mut fake, 0).unwrap();
    assert_eq!(bytes[..8], [9, 0, 16, 1, 4, 0, 0, 0]);
    assert!(bytes[16..].iter().all(|&byte| byte == 0));
    assert_eq!(disk.vendor_bytes(&mut fake, 1), None);
}

#[test]
fn nobody_gets_a_function_twice_and_bridges_are_nobodys() {
    let mut fake = Fake::machine();
    fake.add(Id::new(1, 4, 0), 0x1042_1af4, 0x010000, 0);
    let found = functions(&mut fake, |_| true);
    let disk = Selector::Id {
        vendor: 0x1af4,
        device: 0x1042,
    };
    let id = |index: Option<usize>| index.map(|index| found[index].id.0);
    let selectors = [
        Selector::Slot { id: 0x0120 },
        disk,
        disk,
        Selector::Class { code: 0x010601 },
        Selector::Class { code: 0x060400 },
    ];
    let got: Vec<Option<u16>> = assign(&found, &selectors).into_iter().map(id).collect();
    assert_eq!(got, [Some(0x120), Some(0x118), None, Some(0xfa), None]);
}

#[test]
fn both_ways_to_a_register_name_the_same_one() {
    let id = Id::new(2, 3, 1);
    assert_eq!(port_address(id, 0x34), Some(0x8002_1934));
    assert_eq!(port_address(id, 0x100), None);
    assert_eq!(window_offset(id, 0x34), 0x21_9034);
}

struct Memory(Vec<u8>);
impl Physical for Memory {
    fn read(&mut self, address: u64, into: &mut [u8]) -> bool {
        let start = usize::try_from(address).unwrap_or(usize::MAX);
        match start
            .checked_add(into.len())
            .and_then(|end| self.0.get(start..end))
        {
            Some(bytes) => into.copy_from_slice(bytes),
            None => return false,
        }
        true
    }
}

/// RSDP at 16, a root table at 64, MCFG at 256.
fn tables(wide: bool) -> Memory {
    let mut bytes = vec![0u8; 1024];
    fn sum(bytes: &mut [u8], at: usize) {
        bytes[at] = 0;
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[at] = 0u8.wrapping_sub(sum);
    }
    bytes[16..24].copy_from_slice(b"RSD PTR ");
    bytes[31] = if wide { 2 } else { 0 };
    bytes[32..36].copy_from_slice(&64u32.to_le_bytes());
    bytes[40..48].copy_from_slice(&64u64.to_le_bytes());
    sum(&mut bytes[16..36], 8);
    sum(&mut bytes[16..52], 32);
    bytes[64..68].copy_from_slice(if wide { b"XSDT" } else { b"RSDT" });
    let length: u32 = if wide { 36 + 16 } else { 36 + 8 };
    bytes[68..72].copy_from_slice(&length.to_le_bytes());
    // The first table listed is another one.
    let second = if wide { 108 } else { 104 };
    bytes[100..102].copy_from_slice(&600u16.to_le_bytes());
    bytes[second..second + 2].copy_from_slice(&256u16.to_le_bytes());
    sum(&mut bytes[64..64 + length as usize], 9);
    bytes[256..260].copy_from_slice(b"MCFG");
    bytes[260..264].copy_from_slice(&(44u32 + 32).to_le_bytes());
    bytes[300..308].copy_from_slice(&0xb000_0000u64.to_le_bytes());
    bytes[311] = 255;
    // Of segment 1.
    bytes[316..324].copy_from_slice(&0xc000_0000u64.to_le_bytes());
    bytes[324] = 1;
    sum(&mut bytes[256..256 + 76], 9);
    Memory(bytes)
}

#[test]
fn the_window_of_segment_0_is_found_by_both_root_tables() {
    for wide in [false, true] {
        let window = Window {
            base: 0xb000_0000,
            first: 0,
            last: 255,
        };
        assert_eq!(acpi::windows(&mut tables(wide), 16), Ok(vec![window]));
    }
}

#[test]
fn damaged_tables_are_named() {
    let with = |at: usize| {
        let mut memory = tables(true);
        memory.0[at] ^= 1;
        acpi::windows(&mut memory, 16)
    };
    assert_eq!(with(17), Err(AcpiError::Rsdp));
    assert_eq!(with(65), Err(AcpiError::Root));
    assert_eq!(with(300), Err(AcpiError::NoMcfg));
    assert_eq!(acpi::windows(&mut tables(true), 0), Err(AcpiError::Rsdp));
    assert_eq!(
        acpi::windows(&mut tables(true), u64::MAX),
        Err(AcpiError::Rsdp)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_change_of_the_tables_is_survived(
        changes in proptest::collection::vec((0usize..400, any::<u8>()), 0..6), wide: bool,
        mend: bool,
    ) {
        let mut memory = tables(wide);
        for (at, value) in changes {
            memory.0[at] = value;
        }
        if mend {
            // With checksums right, so that what they protect is reached.
            for (start, end, at) in [(16, 36, 24), (16, 52, 48), (64, if wide { 116 } else { 108 }, 73), (256, 332, 265)] {
                memory.0[at] = 0;
                let sum = memory.0[start..end].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                memory.0[at] = 0u8.wrapping_sub(sum);
            }
        }
        if let Ok(windows) = acpi::windows(&mut memory, 16) {
            for window in windows {
                prop_assert!(window.first <= window.last && window.base != 0);
                prop_assert!(window.base + (256 << 20) < 1 << 52);
            }
        }
    }

    #[test]
    fn a_function_of_any_bytes_ends_and_gives_no_page_of_its_table(
        words in proptest::collection::vec(any::<u32>(), 64),
        masks in proptest::collection::vec(any::<u32>(), 8),
        plausible: bool,
    ) {
        let mut fake = Fake::default();
        let registers = fake.add(DISK, 1, 0, 0);
        registers[..64].copy_from_slice(&words);
        if plausible {
            // Capabilities that are likely to be looked at: MSI-X over any registers.
            registers[1] |= 1 << 20;
            registers[13] = 0x40;
            registers[0x10] = registers[0x10] & 0xffff_0000 | 0x5011;
            registers[0x14] = registers[0x14] & 0xffff_0000 | 0x0009;
        }
        for (index, mask) in masks.iter().enumerate() {
            fake.masks.insert((DISK.0, 0x10 + 4 * index as u16), *mask);
        }
        let function = Function::read(&mut fake, DISK);
        for (index, place) in function.bars.iter().enumerate() {
            if let Bar::Memory { bytes } = place.bar {
                prop_assert!(bytes.is_power_of_two() && place.base.is_multiple_of(bytes));
            }
            for page in [0, 1, 2, 7, u32::MAX] {
                if let (Ok(address), Some(msix)) = (function.page(index as u8, page), function.msix) {
                    for (first, last) in msix.pages(&function.bars) {
                        prop_assert!(!(first..=last).contains(&address));
                    }
                }
            }
        }
        if let Some(msix) = function.msix {
            let message = Message { address: 1, data: 2 };
            for write in msix.off().into_iter().chain(msix.on(0, message).unwrap_or_default()) {
                if let Write::Table { offset, .. } = write {
                    prop_assert!(offset < msix.table_bytes());
                }
            }
        }
        for index in 0..=255 {
            let _ = function.vendor_bytes(&mut fake, index);
        }
        let _ = function::bases(&mut fake, DISK, 6);
        let _ = functions(&mut fake, |_| true);
        prop_assert!(capabilities(&mut fake, DISK).len() <= 48);
        prop_assert!(fake.accesses < 20_000);
    }

    #[test]
    fn assignment_gives_each_function_once(
        ids in proptest::collection::vec((0u16..4, 0u8..2), 0..12),
        wanted in proptest::collection::vec(0u16..5, 0..12),
    ) {
        let found: Vec<Found> = ids.iter().enumerate().map(|(at, &(device, header))| Found {
            id: Id(at as u16), vendor: 1, device, class: 0, revision: 0, header,
        }).collect();
        let selectors: Vec<Selector> = wanted.iter().map(|&device| Selector::Id { vendor: 1, device }).collect();
        let got = assign(&found, &selectors);
        let mut given: Vec<usize> = got.iter().copied().flatten().collect();
        given.sort_unstable();
        let count = given.len();
        given.dedup();
        prop_assert_eq!(given.len(), count);
        for (index, selector) in got.iter().zip(&wanted) {
            if let Some(index) = index {
                prop_assert_eq!((found[*index].device, found[*index].header), (*selector, 0));
            }
        }
    }
}
