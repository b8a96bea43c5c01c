/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * QEMU memory backend whose memory belongs to an external manager
 *
 * The manager allocates the memory, QEMU maps it and passes it userfaultfds
 * that watch the mapping; from then on the manager decides which pages are
 * present, and fetches the others when they are touched.  The thread that
 * deals with the manager is in hostmem-external-service.c.
 */

#include "qemu/osdep.h"
#include "exec/ramblock.h"
#include "hw/boards.h"
#include "migration/blocker.h"
#include "migration/cpr.h"
#include "migration/misc.h"
#include "qapi/error.h"
#include "qapi/visitor.h"
#include "qemu/error-report.h"
#include "qemu/madvise.h"
#include "qemu/units.h"
#include "system/hostmem.h"
#include "system/hostmem-external.h"
#include "system/system.h"
#include "hostmem-external-link.h"

OBJECT_DECLARE_SIMPLE_TYPE(HostMemoryBackendExternal, MEMORY_BACKEND_EXTERNAL)

#define RECONNECT_MS_DEFAULT 100
#define RECONNECT_MS_MAX     60000
#define HUGE_PAGE_SIZE       (2 * MiB)

struct HostMemoryBackendExternal {
    HostMemoryBackend parent_obj;

    char *socket;
    char *vm_name;
    uint32_t reconnect_ms;
    uint32_t shards;
    bool allow_nested;
    bool hugetlb;
    uint64_t hugetlbsize; /* bytes, 0 if not given */

    ExternalLink *link;
    void (*free_ram)(MemoryRegion *mr); /* what it would do by itself */
    Error *cpr_blocker;
    bool entered;          /* hostmem_external_enter() */
    bool requires_discard; /* ram_block_discard_require() */
};

/* Of the memory of the manager: on hugetlbfs, or ordinary shared memory */
static uint64_t external_backend_page_size(HostMemoryBackendExternal *m)
{
    return m->hugetlb ? HUGE_PAGE_SIZE : qemu_real_host_page_size();
}

/* What can be known to fail before the manager is asked */
static bool external_backend_check(HostMemoryBackendExternal *m,
                                   const char *id, const char *vm_name,
                                   Error **errp)
{
    HostMemoryBackend *backend = MEMORY_BACKEND(m);
    uint64_t page_size = external_backend_page_size(m);
    const char *type = TYPE_MEMORY_BACKEND_EXTERNAL;

    if (!m->socket || !*m->socket) {
        error_setg(errp, "%s '%s' needs socket=PATH, the socket of its memory "
                   "manager", type, id);
        return false;
    }
    if (m->hugetlbsize && !m->hugetlb) {
        error_setg(errp, "hugetlbsize of %s '%s' needs hugetlb=on", type, id);
        return false;
    }
    if (m->hugetlbsize && m->hugetlbsize != HUGE_PAGE_SIZE) {
        error_setg(errp, "hugetlbsize %" PRIu64 " of %s '%s' is not %" PRIu64
                   ", the only size of huge pages that it can have",
                   m->hugetlbsize, type, id, (uint64_t)HUGE_PAGE_SIZE);
        return false;
    }
    if (!backend->size || !QEMU_IS_ALIGNED(backend->size, page_size)) {
        error_setg(errp, "size %" PRIu64 " of %s '%s' is not a multiple of "
                   "the page size, %" PRIu64, backend->size, type, id,
                   page_size);
        return false;
    }
    if (strlen(id) >= UFFDMM_NAME_MAX) {
        error_setg(errp, "id '%s' of %s is longer than %d bytes", id, type,
                   UFFDMM_NAME_MAX - 1);
        return false;
    }
    if (!*vm_name || strlen(vm_name) >= UFFDMM_NAME_MAX) {
        error_setg(errp, "vm-name '%s' of %s '%s' is not 1 to %d bytes long",
                   vm_name, type, id, UFFDMM_NAME_MAX - 1);
        return false;
    }
    if (!backend->share) {
        error_setg(errp, "%s '%s' cannot have share=off: its memory is "
                   "shared with the memory manager", type, id);
        return false;
    }
    if (backend->prealloc) {
        error_setg(errp, "%s '%s' cannot have prealloc=on: its memory manager "
                   "decides which pages are present", type, id);
        return false;
    }
    if (should_mlock(mlock_state)) {
        error_setg(errp, "%s '%s' cannot be used with -overcommit mem-lock: "
                   "locked memory cannot be swapped out", type, id);
        return false;
    }
    if (backend->guest_memfd || (current_machine && current_machine->cgs)) {
        error_setg(errp, "%s '%s' cannot be used for a confidential guest: "
                   "its memory manager reads guest memory", type, id);
        return false;
    }
    if (cpr_is_incoming()) {
        error_setg(errp, "%s '%s' cannot be taken over from another QEMU by "
                   "a CPR migration", type, id);
        return false;
    }
    return true;
}

/* Exclude what would go past userfaultfd.  Undone by instance_finalize. */
static bool external_backend_exclude(HostMemoryBackendExternal *m,
                                     const char *id, Error **errp)
{
    if (!hostmem_external_enter(m->allow_nested, errp)) {
        return false;
    }
    m->entered = true;

    if (ram_block_discard_require(true) < 0) {
        error_setg(errp, "%s '%s' cannot be used with devices that pin guest "
                   "memory (VFIO, vhost-vdpa, nvme:// and the like)",
                   TYPE_MEMORY_BACKEND_EXTERNAL, id);
        return false;
    }
    m->requires_discard = true;

    if (!migrate_external_ram_compatible(errp)) {
        return false;
    }
    error_setg(&m->cpr_blocker, "%s '%s' cannot be handed to another QEMU by "
               "a CPR migration", TYPE_MEMORY_BACKEND_EXTERNAL, id);
    return migrate_add_blocker_modes(&m->cpr_blocker, errp,
                                     MIG_MODE_CPR_REBOOT,
                                     MIG_MODE_CPR_TRANSFER, -1) == 0;
}

/*
 * When the last reference to the memory region goes, nothing can need the
 * content any more, and the memory is still mapped: the moment to detach.
 */
static void external_backend_free_ram(MemoryRegion *mr)
{
    HostMemoryBackend *backend = container_of(mr, HostMemoryBackend, mr);
    HostMemoryBackendExternal *m = MEMORY_BACKEND_EXTERNAL(backend);

    mr->ram_block->external = NULL;
    external_link_stop(m->link);
    m->link = NULL;
    m->free_ram(mr);
}

static bool
external_backend_memory_alloc(HostMemoryBackend *backend, Error **errp)
{
    HostMemoryBackendExternal *m = MEMORY_BACKEND_EXTERNAL(backend);
    g_autofree char *ram_name = host_memory_backend_get_name(backend);
    const char *id = object_get_canonical_path_component(OBJECT(backend));
    g_autofree char *vm_name = NULL;
    ExternalLinkConfig config;
    uint32_t ram_flags = RAM_SHARED;
    void *base;
    int fd;

    /*
     * A reservation of huge pages would keep those that the manager takes
     * away from this guest from all others.
     */
    if (!backend->reserve || m->hugetlb) {
        ram_flags |= RAM_NORESERVE;
    }

    if (m->vm_name) {
        vm_name = g_strdup(m->vm_name);
    } else if (qemu_get_vm_name()) {
        vm_name = g_strdup(qemu_get_vm_name());
    } else {
        vm_name = g_strdup_printf("qemu-%d", getpid());
    }
    if (!external_backend_check(m, id, vm_name, errp) ||
        !external_backend_exclude(m, id, errp)) {
        return false;
    }

    config = (ExternalLinkConfig) {
        .id = id,
        .socket = m->socket,
        .vm_name = vm_name,
        .size = backend->size,
        .page_size = external_backend_page_size(m),
        .nr_shards = m->shards,
        .reconnect_ms = m->reconnect_ms,
    };
    if (qemu_uuid_set) {
        config.uuid = qemu_uuid;
    }
    m->link = external_link_start(&config, errp);
    if (!m->link) {
        return false;
    }

    fd = external_link_dup_memfd(m->link);
    if (fd < 0) {
        error_setg_errno(errp, errno, "cannot duplicate the descriptor of "
                         "the guest memory");
        goto stop;
    }
    if (!memory_region_init_ram_from_fd(&backend->mr, OBJECT(backend),
                                        ram_name, backend->size, ram_flags,
                                        fd, 0, errp)) {
        close(fd);
        goto stop;
    }
    m->free_ram = backend->mr.destructor;
    backend->mr.destructor = external_backend_free_ram;
    base = memory_region_get_ram_ptr(&backend->mr);
    if (!m->hugetlb) {
        /* pages come and go one by one */
        qemu_madvise(base, backend->size, QEMU_MADV_NOHUGEPAGE);
    }
    if (!external_link_attach(m->link, base, errp)) {
        return false;
    }
    backend->mr.ram_block->external = m->link;
    return true;

stop:
    external_link_stop(m->link);
    m->link = NULL;
    return false;
}

/* Properties are fixed once the memory exists. */
static bool external_backend_settable(Object *obj, const char *name,
                                      Error **errp)
{
    if (host_memory_backend_mr_inited(MEMORY_BACKEND(obj))) {
        error_setg(errp, "cannot change property '%s' of %s", name,
                   object_get_typename(obj));
        return false;
    }
    return true;
}

static char *external_backend_get_socket(Object *obj, Error **errp)
{
    return g_strdup(MEMORY_BACKEND_EXTERNAL(obj)->socket);
}

static void external_backend_set_socket(Object *obj, const char *value,
                                        Error **errp)
{
    HostMemoryBackendExternal *m = MEMORY_BACKEND_EXTERNAL(obj);

    if (external_backend_settable(obj, "socket", errp)) {
        g_free(m->socket);
        m->socket = g_strdup(value);
    }
}

static char *external_backend_get_vm_name(Object *obj, Error **errp)
{
    return g_strdup(MEMORY_BACKEND_EXTERNAL(obj)->vm_name);
}

static void external_backend_set_vm_name(Object *obj, const char *value,
                                         Error **errp)
{
    HostMemoryBackendExternal *m = MEMORY_BACKEND_EXTERNAL(obj);

    if (external_backend_settable(obj, "vm-name", errp)) {
        g_free(m->vm_name);
        m->vm_name = g_strdup(value);
    }
}

static void external_backend_get_uint32(Object *obj, Visitor *v,
                                        const char *name, void *opaque,
                                        Error **errp)
{
    HostMemoryBackendExternal *m = MEMORY_BACKEND_EXTERNAL(obj);
    uint32_t value = !strcmp(name, "shards") ? m->shards : m->reconnect_ms;

    visit_type_uint32(v, name, &value, errp);
}

static void external_backend_set_uint32(Object *obj, Visitor *v,
                                        const char *name, void *opaque,
                                        Error **errp)
{
    HostMemoryBackendExternal *m = MEMORY_BACKEND_EXTERNAL(obj);
    bool shards = !strcmp(name, "shards");
    uint32_t max = shards ? UFFDMM_SHARDS_MAX : RECONNECT_MS_MAX;
    uint32_t value;

    if (!external_backend_settable(obj, name, errp) ||
        !visit_type_uint32(v, name, &value, errp)) {
        return;
    }
    if (value < 1 || value > max) {
        error_setg(errp, "property '%s' of %s is %" PRIu32 ", not in the "
                   "range 1 to %" PRIu32, name, object_get_typename(obj),
                   value, max);
        return;
    }
    *(shards ? &m->shards : &m->reconnect_ms) = value;
}

static bool external_backend_get_allow_nested(Object *obj, Error **errp)
{
    return MEMORY_BACKEND_EXTERNAL(obj)->allow_nested;
}

static void external_backend_set_allow_nested(Object *obj, bool value,
                                              Error **errp)
{
    if (external_backend_settable(obj, "x-allow-nested", errp)) {
        MEMORY_BACKEND_EXTERNAL(obj)->allow_nested = value;
    }
}

static bool external_backend_get_hugetlb(Object *obj, Error **errp)
{
    return MEMORY_BACKEND_EXTERNAL(obj)->hugetlb;
}

static void external_backend_set_hugetlb(Object *obj, bool value,
                                         Error **errp)
{
    if (external_backend_settable(obj, "hugetlb", errp)) {
        MEMORY_BACKEND_EXTERNAL(obj)->hugetlb = value;
    }
}

static void external_backend_get_hugetlbsize(Object *obj, Visitor *v,
                                             const char *name, void *opaque,
                                             Error **errp)
{
    uint64_t value = MEMORY_BACKEND_EXTERNAL(obj)->hugetlbsize;

    visit_type_size(v, name, &value, errp);
}

static void external_backend_set_hugetlbsize(Object *obj, Visitor *v,
                                             const char *name, void *opaque,
                                             Error **errp)
{
    uint64_t value;

    if (!external_backend_settable(obj, name, errp) ||
        !visit_type_size(v, name, &value, errp)) {
        return;
    }
    if (!value) {
        error_setg(errp, "property '%s' of %s cannot be 0", name,
                   object_get_typename(obj));
        return;
    }
    MEMORY_BACKEND_EXTERNAL(obj)->hugetlbsize = value;
}

static void external_backend_instance_init(Object *obj)
{
    HostMemoryBackendExternal *m = MEMORY_BACKEND_EXTERNAL(obj);

    MEMORY_BACKEND(m)->share = true;
    m->reconnect_ms = RECONNECT_MS_DEFAULT;
    m->shards = 1;
}

static void external_backend_instance_finalize(Object *obj)
{
    HostMemoryBackendExternal *m = MEMORY_BACKEND_EXTERNAL(obj);

    migrate_del_blocker(&m->cpr_blocker);
    if (m->requires_discard) {
        ram_block_discard_require(false);
    }
    if (m->entered) {
        hostmem_external_leave(m->allow_nested);
    }
    g_free(m->socket);
    g_free(m->vm_name);
}

static void external_backend_class_init(ObjectClass *oc, void *data)
{
    HostMemoryBackendClass *bc = MEMORY_BACKEND_CLASS(oc);

    bc->alloc = external_backend_memory_alloc;

    object_class_property_add_str(oc, "socket",
                                  external_backend_get_socket,
                                  external_backend_set_socket);
    object_class_property_set_description(oc, "socket",
        "UNIX socket of the memory manager");
    object_class_property_add_str(oc, "vm-name",
                                  external_backend_get_vm_name,
                                  external_backend_set_vm_name);
    object_class_property_set_description(oc, "vm-name",
        "Name of the VM for the memory manager (default: that of -name)");
    object_class_property_add(oc, "reconnect-ms", "uint32",
                              external_backend_get_uint32,
                              external_backend_set_uint32, NULL, NULL);
    object_class_property_set_description(oc, "reconnect-ms",
        "Pause before the first attempt to reconnect to the manager");
    object_class_property_add(oc, "shards", "uint32",
                              external_backend_get_uint32,
                              external_backend_set_uint32, NULL, NULL);
    object_class_property_set_description(oc, "shards",
        "Number of slices whose faults are served in parallel");
    object_class_property_add_bool(oc, "hugetlb",
                                   external_backend_get_hugetlb,
                                   external_backend_set_hugetlb);
    object_class_property_set_description(oc, "hugetlb", "Use huge pages");
    object_class_property_add(oc, "hugetlbsize", "size",
                              external_backend_get_hugetlbsize,
                              external_backend_set_hugetlbsize, NULL, NULL);
    object_class_property_set_description(oc, "hugetlbsize",
        "Huge pages size (2M)");
    object_class_property_add_bool(oc, "x-allow-nested",
                                   external_backend_get_allow_nested,
                                   external_backend_set_allow_nested);
    object_class_property_set_description(oc, "x-allow-nested",
        "Risk nested virtualization although it pins guest pages");
}

static const TypeInfo external_backend_info = {
    .name = TYPE_MEMORY_BACKEND_EXTERNAL,
    .parent = TYPE_MEMORY_BACKEND,
    .instance_init = external_backend_instance_init,
    .instance_finalize = external_backend_instance_finalize,
    .class_init = external_backend_class_init,
    .instance_size = sizeof(HostMemoryBackendExternal),
};

static void register_types(void)
{
    type_register_static(&external_backend_info);
}

type_init(register_types);
