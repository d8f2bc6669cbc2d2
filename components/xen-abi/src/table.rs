//! The guest ABI as data: every hypercall and sub-operation of Xen 4.17, who uses it, and what
//! becomes of it here. `docs/xen-abi.md` is this table; a test keeps the two, and the dispatch,
//! in agreement.

use crate::errno::Errno;

/// What becomes of an operation.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// Done, and the test that shows it.
    Done(&'static str),
    /// Refused on purpose, with one of these errors, as Xen refuses it (`why` says if not); and
    /// the test that shows it.
    Refused(&'static [Errno], &'static str, &'static str),
    /// Refused through statuses or counts in the guest's structures; why, and the test.
    Declined(&'static str, &'static str),
}

/// One operation.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Hypercall.
    pub call: &'static str,
    /// Its number.
    pub number: u64,
    /// Sub-operation and its number; `None` if the hypercall has none or they share one answer.
    pub operation: Option<(&'static str, u64)>,
    /// Guests that make use of it.
    pub users: &'static str,
    /// The answer.
    pub answer: Answer,
}

const fn row(
    call: (&'static str, u64),
    operation: (&'static str, u64),
    users: &'static str,
    answer: Answer,
) -> Row {
    Row {
        call: call.0,
        number: call.1,
        operation: Some(operation),
        users,
        answer,
    }
}

const fn whole(call: (&'static str, u64), users: &'static str, answer: Answer) -> Row {
    Row {
        call: call.0,
        number: call.1,
        operation: None,
        users,
        answer,
    }
}

const fn done(test: &'static str) -> Answer {
    Answer::Done(test)
}

const fn refused(errors: &'static [Errno], why: &'static str, test: &'static str) -> Answer {
    Answer::Refused(errors, why, test)
}

const MEMORY: (&str, u64) = ("memory_op", 12);
const VERSION: (&str, u64) = ("xen_version", 17);
const CONSOLE: (&str, u64) = ("console_io", 18);
const GRANT: (&str, u64) = ("grant_table_op", 20);
const VCPU: (&str, u64) = ("vcpu_op", 24);
const SCHED: (&str, u64) = ("sched_op", 29);
const EVENT: (&str, u64) = ("event_channel_op", 32);
const PHYSDEV: (&str, u64) = ("physdev_op", 33);
const HVM: (&str, u64) = ("hvm_op", 34);

const ALL: &str = "Linux, FreeBSD, NetBSD, grub";
const KERNELS: &str = "Linux, FreeBSD, NetBSD";
const LINUX: &str = "Linux";
const PV: &str = "PV guests";
const DOM0: &str = "dom0";
const TOOLS: &str = "toolstacks";
const NOBODY: &str = "nobody";

const NOSYS: &[Errno] = &[Errno::NoSys];
const ABSENT: &str = "hypercalls_outside_an_hvm_domains_table_do_not_exist";
const TOOLSTACK_MEMORY: &str = "operations_of_toolstacks_and_absent_features_are_refused";
const GRANT_FILTER: &str = "operations_outside_an_hvm_domains_filter_are_refused";

const fn absent(name: &'static str, number: u64, users: &'static str, why: &'static str) -> Row {
    whole((name, number), users, refused(NOSYS, why, ABSENT))
}

/// The table, by number.
#[rustfmt::skip]
pub const TABLE: &[Row] = &[
    absent("set_trap_table", 0, PV, "PV only"),
    absent("mmu_update", 1, PV, "PV only"),
    absent("set_gdt", 2, PV, "PV only"),
    absent("stack_switch", 3, PV, "PV only"),
    absent("set_callbacks", 4, PV, "PV only"),
    absent("fpu_taskswitch", 5, PV, "PV only"),
    absent("sched_op_compat", 6, PV, "PV only"),
    whole(("platform_op", 7), DOM0, refused(&[Errno::Perm, Errno::Acces, Errno::Fault], "dom0's", "control_interfaces_check_version_then_privilege")),
    absent("set_debugreg", 8, PV, "PV only"),
    absent("get_debugreg", 9, PV, "PV only"),
    absent("update_descriptor", 10, PV, "PV only"),

    row(MEMORY, ("increase_reservation", 0), "Linux PV", Answer::Declined("no extent is done: a page here always has a place in the map", "reservations_that_xen_refuses_do_nothing")),
    row(MEMORY, ("decrease_reservation", 1), KERNELS, done("balloon_takes_pages_out_and_puts_them_back")),
    row(MEMORY, ("maximum_ram_page", 2), "Linux dom0", done("sizes_are_told_to_the_domain_itself")),
    row(MEMORY, ("current_reservation", 3), KERNELS, done("sizes_are_told_to_the_domain_itself")),
    row(MEMORY, ("maximum_reservation", 4), KERNELS, done("sizes_are_told_to_the_domain_itself")),
    row(MEMORY, ("machphys_mfn_list", 5), PV, Answer::Declined("an empty list: there is no machine-to-physical table", "no_page_is_shared_and_no_machine_frame_is_told")),
    row(MEMORY, ("populate_physmap", 6), KERNELS, done("balloon_takes_pages_out_and_puts_them_back")),
    row(MEMORY, ("add_to_physmap", 7), ALL, done("shared_info_appears_where_the_guest_puts_it_and_moves")),
    row(MEMORY, ("memory_map", 9), ALL, done("memory_map_is_given_as_far_as_there_is_room_and_can_be_replaced")),
    row(MEMORY, ("machine_memory_map", 10), DOM0, refused(NOSYS, "dom0's", TOOLSTACK_MEMORY)),
    row(MEMORY, ("exchange", 11), PV, refused(&[Errno::OpNotSupp, Errno::Inval, Errno::Perm, Errno::Srch, Errno::Fault], "translated domains", "exchange_is_refused_for_a_translated_domain")),
    row(MEMORY, ("machphys_mapping", 12), PV, refused(NOSYS, "PV only", TOOLSTACK_MEMORY)),
    row(MEMORY, ("set_memory_map", 13), "grub", done("memory_map_is_given_as_far_as_there_is_room_and_can_be_replaced")),
    row(MEMORY, ("maximum_gpfn", 14), TOOLS, done("sizes_are_told_to_the_domain_itself")),
    row(MEMORY, ("remove_from_physmap", 15), KERNELS, done("removed_page_is_gone_and_special_frames_are_unhooked")),
    row(MEMORY, ("set_pod_target", 16), TOOLS, refused(&[Errno::Perm, Errno::Inval, Errno::Srch, Errno::Fault], "a toolstack's", TOOLSTACK_MEMORY)),
    row(MEMORY, ("get_pod_target", 17), TOOLS, refused(&[Errno::Perm, Errno::Inval, Errno::Srch, Errno::Fault], "a toolstack's", TOOLSTACK_MEMORY)),
    row(MEMORY, ("get_sharing_freed_pages", 18), TOOLS, done("no_page_is_shared_and_no_machine_frame_is_told")),
    row(MEMORY, ("get_sharing_shared_pages", 19), TOOLS, done("no_page_is_shared_and_no_machine_frame_is_told")),
    row(MEMORY, ("paging_op", 20), TOOLS, refused(NOSYS, "built without paging", TOOLSTACK_MEMORY)),
    row(MEMORY, ("access_op", 21), TOOLS, refused(&[Errno::Perm, Errno::Inval, Errno::Srch, Errno::Fault], "a toolstack's", TOOLSTACK_MEMORY)),
    row(MEMORY, ("sharing_op", 22), TOOLS, refused(NOSYS, "built without sharing", TOOLSTACK_MEMORY)),
    row(MEMORY, ("add_to_physmap_batch", 23), KERNELS, done("batch_gives_each_entry_its_error")),
    row(MEMORY, ("claim_pages", 24), TOOLS, refused(&[Errno::Perm, Errno::Inval, Errno::Fault], "a toolstack's", TOOLSTACK_MEMORY)),
    row(MEMORY, ("machphys_compat_mfn_list", 25), PV, refused(&[Errno::OpNotSupp], "no 32-bit PV guests", TOOLSTACK_MEMORY)),
    row(MEMORY, ("get_vnumainfo", 26), TOOLS, refused(&[Errno::OpNotSupp, Errno::Perm, Errno::Inval, Errno::Srch, Errno::Fault], "no virtual NUMA", TOOLSTACK_MEMORY)),
    row(MEMORY, ("reserved_device_memory_map", 27), TOOLS, done("no_device_memory_is_reserved")),
    row(MEMORY, ("acquire_resource", 28), "Linux dom0", refused(&[Errno::Acces], "translated domains", TOOLSTACK_MEMORY)),

    whole(("multicall", 13), "Linux", done("every_call_of_a_list_gets_its_result")),
    absent("update_va_mapping", 14, PV, "PV only"),
    whole(("set_timer_op", 15), "FreeBSD, NetBSD, Linux PV", done("set_timer_op_sets_stops_and_survives_wrapped_times")),
    absent("event_channel_op_compat", 16, PV, "PV only"),

    row(VERSION, ("version", 0), ALL, done("version_is_4_17_in_both_widths")),
    row(VERSION, ("extraversion", 1), KERNELS, done("texts_fill_their_fields")),
    row(VERSION, ("compile_info", 2), LINUX, done("texts_fill_their_fields")),
    row(VERSION, ("capabilities", 3), LINUX, done("texts_fill_their_fields")),
    row(VERSION, ("changeset", 4), LINUX, done("texts_fill_their_fields")),
    row(VERSION, ("platform_parameters", 5), LINUX, done("platform_parameters_have_the_callers_width")),
    row(VERSION, ("get_features", 6), ALL, done("features_are_those_of_a_translated_hvm_domain")),
    row(VERSION, ("pagesize", 7), LINUX, done("page_size_and_handle_are_open_command_line_and_build_id_are_not")),
    row(VERSION, ("guest_handle", 8), LINUX, done("page_size_and_handle_are_open_command_line_and_build_id_are_not")),
    row(VERSION, ("commandline", 9), DOM0, Answer::Declined("the text is \"<denied>\"", "page_size_and_handle_are_open_command_line_and_build_id_are_not")),
    row(VERSION, ("build_id", 10), LINUX, refused(&[Errno::Perm], "dom0's", "page_size_and_handle_are_open_command_line_and_build_id_are_not")),

    row(CONSOLE, ("write", 0), KERNELS, done("console_gets_printable_text_only")),
    row(CONSOLE, ("read", 1), DOM0, refused(&[Errno::Perm], "dom0's", "console_gets_printable_text_only")),

    absent("physdev_op_compat", 19, PV, "PV only"),

    row(GRANT, ("map_grant_ref", 0), KERNELS, done("a_driver_domain_maps_and_unmaps_by_handle")),
    row(GRANT, ("unmap_grant_ref", 1), KERNELS, done("a_driver_domain_maps_and_unmaps_by_handle")),
    row(GRANT, ("setup_table", 2), KERNELS, done("setup_table_answers_where_frames_are_mapped")),
    row(GRANT, ("dump_table", 3), NOBODY, refused(NOSYS, "HVM domains' filter", GRANT_FILTER)),
    row(GRANT, ("transfer", 4), NOBODY, refused(NOSYS, "HVM domains' filter", GRANT_FILTER)),
    row(GRANT, ("copy", 5), KERNELS, done("copy_works_between_own_pages_and_own_grants")),
    row(GRANT, ("query_size", 6), KERNELS, done("query_size_tells_frames_and_limit")),
    row(GRANT, ("unmap_and_replace", 7), PV, refused(NOSYS, "HVM domains' filter", GRANT_FILTER)),
    row(GRANT, ("set_version", 8), KERNELS, done("a_domain_goes_over_to_version_2_and_back")),
    row(GRANT, ("get_status_frames", 9), LINUX, refused(NOSYS, "HVM domains' filter", GRANT_FILTER)),
    row(GRANT, ("get_version", 10), NOBODY, done("a_domain_goes_over_to_version_2_and_back")),
    row(GRANT, ("swap_grant_ref", 11), NOBODY, done("swap_exchanges_two_entries")),
    row(GRANT, ("cache_flush", 12), "Arm guests", refused(NOSYS, "HVM domains' filter", GRANT_FILTER)),

    whole(("vm_assist", 21), "Linux", done("vm_assist_knows_the_runstate_flag_only")),
    absent("update_va_mapping_otherdomain", 22, PV, "PV only"),
    absent("iret", 23, PV, "PV only"),

    row(VCPU, ("initialise", 0), KERNELS, done("vcpu_is_initialised_once_then_goes_up_and_down")),
    row(VCPU, ("up", 1), KERNELS, done("vcpu_is_initialised_once_then_goes_up_and_down")),
    row(VCPU, ("down", 2), KERNELS, done("vcpu_is_initialised_once_then_goes_up_and_down")),
    row(VCPU, ("is_up", 3), KERNELS, done("vcpu_is_initialised_once_then_goes_up_and_down")),
    row(VCPU, ("get_runstate_info", 4), LINUX, done("runstate_info_counts_the_state_that_lasts")),
    row(VCPU, ("register_runstate_memory_area", 5), "Linux, NetBSD", done("runstate_area_follows_the_vcpu_across_a_page_border")),
    row(VCPU, ("set_periodic_timer", 6), NOBODY, done("periodic_timer_fires_until_it_is_stopped")),
    row(VCPU, ("stop_periodic_timer", 7), KERNELS, done("periodic_timer_fires_until_it_is_stopped")),
    row(VCPU, ("set_singleshot_timer", 8), KERNELS, done("singleshot_timer_fires_once_at_its_time")),
    row(VCPU, ("stop_singleshot_timer", 9), KERNELS, done("stopped_singleshot_timer_does_not_fire")),
    row(VCPU, ("register_vcpu_info", 10), KERNELS, done("registered_vcpu_info_takes_over_and_counts_everything_as_pending")),
    row(VCPU, ("send_nmi", 11), "Linux PV", done("nmi_takes_no_argument")),
    row(VCPU, ("get_physid", 12), DOM0, refused(&[Errno::Inval], "a pinned dom0's", "physical_ids_are_for_a_pinned_dom0")),
    row(VCPU, ("register_vcpu_time_memory_area", 13), LINUX, done("time_area_gets_a_record")),

    absent("set_segment_base", 25, PV, "PV only"),
    whole(("mmuext_op", 26), PV, refused(&[Errno::Inval, Errno::Perm, Errno::Srch], "for PV domains' pages", "page_table_operations_are_for_pv")),
    absent("xsm_op", 27, DOM0, "built without a security module"),
    absent("nmi_op", 28, PV, "PV only"),

    row(SCHED, ("yield", 0), ALL, done("yield_gives_up_the_cpu_once")),
    row(SCHED, ("block", 1), KERNELS, done("block_waits_for_an_event_and_does_not_wait_if_one_is_there")),
    row(SCHED, ("shutdown", 2), ALL, done("shutdown_reports_its_reason_once_and_stops_the_vcpu")),
    row(SCHED, ("poll", 3), KERNELS, done("poll_ends_at_its_port_even_if_that_is_masked")),
    row(SCHED, ("remote_shutdown", 4), TOOLS, refused(&[Errno::Perm, Errno::Srch, Errno::Fault], "a toolstack's", "remote_shutdown_and_pinning_are_not_for_a_domu")),
    row(SCHED, ("shutdown_code", 5), NOBODY, done("shutdown_code_given_before_counts")),
    row(SCHED, ("watchdog", 6), LINUX, done("watchdog_bites_unless_it_is_fed")),
    row(SCHED, ("pin_override", 7), DOM0, refused(&[Errno::Perm], "dom0's", "remote_shutdown_and_pinning_are_not_for_a_domu")),

    absent("callback_op", 30, PV, "PV only"),
    absent("xenoprof_op", 31, PV, "PV only"),

    row(EVENT, ("bind_interdomain", 0), KERNELS, done("bind_interdomain_loops_within_the_domain_and_starts_pending")),
    row(EVENT, ("bind_virq", 1), KERNELS, done("bind_virq_is_once_per_vcpu_and_global_ones_are_vcpu_0s")),
    row(EVENT, ("bind_pirq", 2), "Linux PVHVM, PV", done("numbers_of_physical_interrupts_are_bound_once_and_mean_nothing")),
    row(EVENT, ("close", 3), ALL, done("close_frees_a_port_and_lowest_is_next")),
    row(EVENT, ("send", 4), ALL, done("ipi_reaches_its_vcpu_through_pending_selector_and_upcall")),
    row(EVENT, ("status", 5), LINUX, done("status_names_every_kind_of_port")),
    row(EVENT, ("alloc_unbound", 6), ALL, done("alloc_unbound_answers_a_port_and_sends_to_it_are_dropped")),
    row(EVENT, ("bind_ipi", 7), KERNELS, done("bind_ipi_needs_a_vcpu")),
    row(EVENT, ("bind_vcpu", 8), KERNELS, done("bind_vcpu_moves_ports_but_not_ipis_or_per_vcpu_virqs")),
    row(EVENT, ("unmask", 9), KERNELS, done("masked_port_becomes_pending_without_upcall_and_unmask_delivers_it")),
    row(EVENT, ("reset", 10), LINUX, done("reset_closes_everything")),
    row(EVENT, ("init_control", 11), LINUX, done("first_control_block_ends_the_two_levels")),
    row(EVENT, ("expand_array", 12), LINUX, refused(&[Errno::OpNotSupp, Errno::Fault], "only before a control block is set up", "what_was_pending_before_is_queued_when_its_word_comes")),
    row(EVENT, ("set_priority", 13), LINUX, refused(&[Errno::NoSys, Errno::Inval, Errno::Fault], "only with 2 levels, which have none", "priorities_order_what_is_pending")),
    row(EVENT, ("reset_cont", 14), NOBODY, refused(&[Errno::Busy, Errno::Perm, Errno::Srch, Errno::Fault], "no reset was interrupted", "reset_closes_everything")),

    row(PHYSDEV, ("map_pirq", 13), "Linux PVHVM, PV", refused(NOSYS, "no physical interrupts", "physical_interrupt_operations_are_refused")),
    row(PHYSDEV, ("unmap_pirq", 14), "Linux PVHVM, PV", refused(NOSYS, "no physical interrupts", "physical_interrupt_operations_are_refused")),
    row(PHYSDEV, ("others", 12), "Linux PVHVM, PV", refused(NOSYS, "no physical interrupts", "physical_interrupt_operations_are_refused")),

    row(HVM, ("set_param", 0), ALL, done("every_parameter_has_xens_access_rule_for_oneself")),
    row(HVM, ("get_param", 1), ALL, done("guest_reads_where_store_and_console_are_but_cannot_move_them")),
    row(HVM, ("flush_tlbs", 5), NOBODY, done("flush_tlbs_takes_no_argument")),
    row(HVM, ("pagetable_dying", 9), LINUX, refused(&[Errno::Inval, Errno::OpNotSupp, Errno::Srch, Errno::Fault], "no shadow paging", "pagetable_dying_is_for_shadow_paging")),
    row(HVM, ("get_time", 10), NOBODY, done("get_time_is_system_time")),
    row(HVM, ("xentrace", 11), NOBODY, done("xentrace_records_go_nowhere")),
    row(HVM, ("get_mem_type", 15), LINUX, done("memory_type_tells_ram_from_holes")),
    row(HVM, ("set_evtchn_upcall_vector", 23), KERNELS, done("per_vcpu_upcall_vector_goes_through_the_local_apic")),
    row(HVM, ("guest_request_vm_event", 24), NOBODY, done("monitor_and_altp2m_are_absent")),
    row(HVM, ("altp2m", 25), NOBODY, refused(&[Errno::OpNotSupp], "not supported", "monitor_and_altp2m_are_absent")),

    whole(("sysctl", 35), TOOLS, refused(&[Errno::Perm, Errno::Acces, Errno::Fault], "a toolstack's", "control_interfaces_check_version_then_privilege")),
    whole(("domctl", 36), TOOLS, refused(&[Errno::Perm, Errno::Acces, Errno::Srch, Errno::Inval, Errno::OpNotSupp, Errno::Fault], "a toolstack's", "domctls_find_the_domain_then_bad_arguments_then_no_privilege")),
    absent("kexec_op", 37, DOM0, "dom0's"),
    absent("tmem_op", 38, NOBODY, "gone since Xen 4.13"),
    absent("argo_op", 39, NOBODY, "built without argo"),
    whole(("xenpmu_op", 40), "Linux PV", refused(&[Errno::OpNotSupp], "the domain has a local APIC", "performance_counters_are_not_xens_for_a_domain_with_an_apic")),
    whole(("dm_op", 41), "device models", refused(&[Errno::Perm, Errno::Srch, Errno::NoData, Errno::TooBig, Errno::Inval, Errno::Fault], "a device model's", "device_model_and_file_system_operations_are_refused")),
    whole(("hypfs_op", 42), TOOLS, refused(&[Errno::Perm], "a toolstack's", "device_model_and_file_system_operations_are_refused")),
    absent("mca", 48, DOM0, "dom0's"),
    whole(("paging_domctl_cont", 49), NOBODY, refused(&[Errno::OpNotSupp, Errno::Perm, Errno::Srch, Errno::Fault], "a toolstack's", "only_a_shadow_operation_is_continued")),
];
