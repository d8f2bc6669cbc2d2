//! The boot sequence of the first CPU, in order, up to root's first instruction.

use crate::boot::acpi::Platform;
use crate::boot::map::{PAGE, Ranges, page_up};
use crate::boot::{self, acpi};
use crate::cpu::{self, CPUS_MAX, Cpu};
use crate::paging::{self, DEVICES, DIRECT_MAP, Protection, Tables, take};
use crate::{apic, feature, glue, ioapic, iommu, panic, ring, smp, speculation, time, trap, virt};
use heapless::Vec;
use microvisor_abi::archive::Archive;

const MIB: u64 = 1 << 20;
const LARGE: u64 = 2 * MIB;

/// What the boot sequence found and set up, for creating root.
pub struct Machine {
    /// Memory that is free for root.
    pub free: Ranges,
    /// Device memory for root.
    pub devices: Ranges,
    /// One past the highest byte of RAM.
    pub ram_end: u64,
    /// Physical address of the frame table: one `u32` per 4 KiB frame below `ram_end`.
    pub frame_table: u64,
    /// Physical address of the archive, 2 MiB aligned; whole 2 MiB frames belong to it.
    pub archive: u64,
    /// Its length.
    pub archive_bytes: u64,
    /// Physical address of the log and trace region.
    pub rings: u64,
    /// Physical address of the RSDP.
    pub rsdp: u64,
    /// TSC at the first instruction.
    pub boot_tsc: u64,
}

/// Boots. Anything that cannot be had ends in a panic that says what is missing.
pub fn start(magic: u32, info: u32, boot_tsc: u64) -> ! {
    if let Some(what) = feature::missing() {
        panic!("this CPU lacks {what}");
    }
    let firmware = boot::firmware(magic, info).unwrap_or_else(|why| panic!("{why}"));
    let platform = acpi::platform(firmware.rsdp).unwrap_or_else(|why| panic!("{why}"));
    let remapping = boot::remapping(firmware.rsdp);
    let ram = firmware.memory();
    log::info!(
        "{} MiB of memory, {} CPUs, {} I/O APICs",
        ram.bytes() / MIB,
        platform.cpus.len(),
        platform.io_apics.len()
    );
    if firmware.ignored + platform.ignored_cpus > 0 {
        log::warn!(
            "ignored: {} memory regions, {} CPUs",
            firmware.ignored,
            platform.ignored_cpus
        );
    }
    let mut devices = device_ranges(&ram, &platform);
    for unit in &remapping.units {
        let page = unit.base & !(PAGE - 1);
        devices.remove(page, page + iommu::REGISTER_BYTES);
    }
    let mut free = ram.clone();
    free.remove(0, MIB);
    // A loader's copy of the RSDP may lie in memory: its pages are kept, for root to read.
    let (first, last) = (firmware.rsdp & !(PAGE - 1), page_up(firmware.rsdp + 36));
    if free.contains(first, last) {
        free.remove(first, last);
        devices.add(first, last);
    }
    let (image, image_end) = paging::image_physical();
    free.remove(image, page_up(image_end));
    let Some((start, end)) = firmware.archive.filter(|(start, end)| start < end) else {
        panic!("no boot archive: give it as the first module (with QEMU: -initrd)");
    };
    let archive = place_archive(&mut free, start, end);

    let apic_ids = numbered(&platform);
    let rings = take(&mut free, ring::BYTES, LARGE);
    ring::init(rings, apic_ids.len());
    let ram_end = ram.iter().next_back().map_or(0, |(_, end)| end);
    let frame_table = take(&mut free, ram_end / PAGE * 4, LARGE);

    feature::activate();
    let cpus_bytes = (apic_ids.len() * 32 * PAGE as usize) as u64;
    let mut pool = Ranges::default();
    let pool_start = take(&mut free, cpus_bytes, PAGE);
    pool.add(pool_start, pool_start + cpus_bytes);
    let mut tables = Tables::new(&mut free, feature::gigabyte_pages());
    tables.map_image();
    for (start, end) in ram.iter() {
        tables.map(DIRECT_MAP + start, start, end - start, Protection::Write);
    }
    tables.map(
        DEVICES,
        platform.local_apic & !(PAGE - 1),
        PAGE,
        Protection::Device,
    );
    for (index, io_apic) in platform.io_apics.iter().enumerate() {
        let page = io_apic.address & !(PAGE - 1);
        tables.map(ioapic::address(index), page, PAGE, Protection::Device);
    }
    for (index, unit) in remapping.units.iter().enumerate() {
        let page = unit.base & !(PAGE - 1);
        let bytes = iommu::REGISTER_BYTES;
        tables.map(iommu::address(index), page, bytes, Protection::Device);
    }
    cpu::create(&mut tables, &mut cpu::taker(&mut pool), &apic_ids);
    for (start, end) in pool.iter() {
        free.add(start, end);
    }
    trap::build_idt();
    // SAFETY: the tables map all that is in use (image, memory, this stack in the image's data);
    // the area is CPU 0's own.
    unsafe {
        paging::load(cpu::core_root());
        Cpu::activate(cpu::area(0));
    }
    trap::activate();
    panic::per_cpu_ready();
    apic::init();
    apic::activate();
    ioapic::init(&platform, apic::id());
    time::calibrate();
    iommu::setup(&mut |bytes| take(&mut free, bytes, PAGE), &remapping);
    speculation::setup();
    virt::setup(&mut |bytes| take(&mut free, bytes, PAGE));
    virt::enable();
    smp::start();

    let machine = Machine {
        free,
        devices,
        ram_end,
        frame_table,
        archive,
        archive_bytes: end - start,
        rings,
        rsdp: firmware.rsdp,
        boot_tsc,
    };
    glue::boot(machine)
}

/// Local APIC ids in order of CPU number: this CPU is number 0.
fn numbered(platform: &Platform) -> Vec<u32, CPUS_MAX> {
    let own = raw_cpuid::CpuId::new();
    let own = own
        .get_extended_topology_info()
        .and_then(|mut levels| levels.next())
        .map(|level| level.x2apic_id())
        .or_else(|| {
            own.get_feature_info()
                .map(|info| info.initial_local_apic_id().into())
        })
        .unwrap_or(0);
    let mut ids = Vec::new();
    let _ = ids.push(own);
    for &id in platform.cpus.iter().filter(|&&id| id != own) {
        let _ = ids.push(id);
    }
    ids
}

/// Device memory and firmware's tables, but for the registers that the core keeps.
fn device_ranges(ram: &Ranges, platform: &Platform) -> Ranges {
    let bits = raw_cpuid::CpuId::new()
        .get_processor_capacity_feature_info()
        .map_or(36, |info| info.physical_address_bits());
    let mut devices = ram.devices(bits);
    devices.remove(platform.local_apic, platform.local_apic + PAGE);
    for io_apic in &platform.io_apics {
        let page = io_apic.address & !(PAGE - 1);
        devices.remove(page, page + PAGE);
    }
    devices
}

/// Gives the archive whole 2 MiB frames of its own, moving it there; its address.
fn place_archive(free: &mut Ranges, start: u64, end: u64) -> u64 {
    if end > boot::BOOT_MAPPED {
        panic!("the boot archive lies above 4 GiB");
    }
    let (first, last) = (start & !(PAGE - 1), page_up(end));
    let in_memory = free.contains(first, last);
    free.remove(first, last);
    let bytes = end - start;
    let place = take(free, bytes.next_multiple_of(LARGE), LARGE);
    // SAFETY: both ranges are mapped by the boot tables and do not overlap: the source was taken
    // out of the free memory first.
    unsafe {
        core::ptr::copy_nonoverlapping(
            (DIRECT_MAP + start) as *const u8,
            (DIRECT_MAP + place) as *mut u8,
            bytes as usize,
        );
    }
    if in_memory {
        free.add(first, last);
    }
    let bytes = archive_bytes(place, bytes);
    match Archive::parse(bytes) {
        Ok(archive) => {
            if let Some((_, symbols)) = archive.file("symbols/microvisor") {
                panic::set_symbols(symbols);
            }
        }
        Err(why) => panic!("the boot archive is damaged: {why:?}"),
    }
    place
}

/// The archive's bytes.
pub fn archive_bytes(place: u64, bytes: u64) -> &'static [u8] {
    // SAFETY: the archive's frames are mapped for ever and nothing writes to them.
    unsafe { core::slice::from_raw_parts((DIRECT_MAP + place) as *const u8, bytes as usize) }
}
