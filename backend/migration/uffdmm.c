/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Migration of memory-backend-external: swapped pages go by location, or past
 * guest memory
 *
 * Theory of operation
 *
 * Any migration of such memory begins a session with the manager of each
 * block, so that pages in a store are read by the manager and never brought
 * in.  With the capability swap-locations, and if the manager was prepared for
 * it, pages in a store that the destination can reach are not sent at all:
 * others bring their locations there while RAM iterates.
 *
 * What then goes through the stream is a section of its own.  It follows that
 * of RAM, because what is loaded by RAM is overruled by locations, and it
 * precedes all devices, because they read guest memory when they are loaded.
 * It tells how many locations there are and a digest of them; the destination
 * waits until its manager has exactly these.  If it never has, loading fails,
 * and the source, which learns of it by the return path, goes on.
 *
 *   begin     BEGIN version session
 *   iterate   GO_ON
 *   complete  END, and with a session: number of blocks, and for each of them
 *             length of its name, name, count, digest
 *
 * The migration thread waits for the manager with the RCU read lock held, and
 * with rs->bitmap_mutex, when it has to read a page; that is what it does too
 * whenever it touches memory that is not present.  Only the service thread of
 * the block has to run meanwhile, which needs neither of them, nor the BQL.
 * The waits are bounded, and end when the migration is cancelled.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "exec/ramblock.h"
#include "migration/misc.h"
#include "migration/register.h"
#include "migration.h"
#include "options.h"
#include "qapi/error.h"
#include "qemu/coroutine.h"
#include "qemu/error-report.h"
#include "qemu/rcu.h"
#include "qemu/stats64.h"
#include "qemu-file.h"
#include "ram.h"
#include "trace.h"
#include "uffdmm.h"

enum {
    UFFDMM_STREAM_VERSION = 1,

    UFFDMM_STREAM_BEGIN = 1,
    UFFDMM_STREAM_GO_ON = 2,
    UFFDMM_STREAM_END = 3,
};

/* What the destination has to be told of one page */
#define LOCATION_BYTES     16
/* The destination's manager has that long to get the last locations. */
#define INSTALL_TIMEOUT_MS 30000
#define INSTALL_POLL_NS    (500 * 1000)
/* Pause when only the locations are behind */
#define BACKLOG_PAUSE_US   1000
/* Blocks of a machine, far more than a manager takes */
#define BLOCKS_MAX         256

/* Of the migration thread, and of the main thread while there is none */
static struct {
    GPtrArray *blocks; /* of RAMBlock *; they stay while we migrate */
    uint64_t session;
    uint64_t loading; /* session that the source has announced */
} uffdmm;

/* Read by query-migrate at any time */
static struct {
    bool used; /* by the last migration */
    Stat64 by_content;
    Stat64 by_location;
    Stat64 bypass;
    Stat64 bypass_bytes;
    Stat64 located;
    Stat64 changes;
    Stat64 unacknowledged;
    Stat64 located_bytes;
} uffdmm_stats;

/* ------------------------------------------------------------------------ */
/* Source                                                                    */

static int uffdmm_collect_block(RAMBlock *rb, void *opaque)
{
    if (rb->external && qemu_ram_is_migratable(rb)) {
        g_ptr_array_add(uffdmm.blocks, rb);
    }
    return 0;
}

static RAMBlock *uffdmm_block(guint i)
{
    return g_ptr_array_index(uffdmm.blocks, i);
}

static void uffdmm_end(bool failed)
{
    if (!uffdmm.blocks) {
        return;
    }
    for (guint i = 0; i < uffdmm.blocks->len; i++) {
        hostmem_external_migration_end(uffdmm_block(i), failed);
    }
    g_clear_pointer(&uffdmm.blocks, g_ptr_array_unref);
    uffdmm.session = 0;
}

bool uffdmm_save_setup(Error **errp)
{
    /* a snapshot has no return path: locations are for other hosts only */
    const bool by_location = migrate_swap_locations() &&
                             migrate_get_current()->rp_state.from_dst_file;

    uffdmm_end(true);
    uffdmm.blocks = g_ptr_array_new();
    foreach_not_ignored_block(uffdmm_collect_block, NULL);
    memset(&uffdmm_stats, 0, sizeof(uffdmm_stats));
    uffdmm_stats.used = uffdmm.blocks->len != 0;

    for (guint i = 0; i < uffdmm.blocks->len; i++) {
        uint64_t session;

        if (!hostmem_external_migration_start(uffdmm_block(i), by_location,
                                              &session, errp)) {
            return false;
        }
        if (i && session != uffdmm.session) {
            error_setg(errp, "the memory managers of this machine have "
                       "different sessions, 0x%" PRIx64 " and 0x%" PRIx64
                       ": prepare one for all of them, or none",
                       uffdmm.session, session);
            return false;
        }
        uffdmm.session = session;
    }
    trace_uffdmm_save_setup(uffdmm.session, uffdmm.blocks->len);
    return true;
}

void uffdmm_save_cleanup(void)
{
    int state = migrate_get_current()->state;

    uffdmm_end(state != MIGRATION_STATUS_COMPLETED);
}

static bool uffdmm_cancelled(void)
{
    int state = qatomic_read(&migrate_get_current()->state);

    return state == MIGRATION_STATUS_CANCELLING ||
           state == MIGRATION_STATUS_FAILED;
}

static void uffdmm_update_stats(void)
{
    uint64_t located = 0, changes = 0, acked = 0;

    for (guint i = 0; uffdmm.blocks && i < uffdmm.blocks->len; i++) {
        ExternalLocations l;

        hostmem_external_migration_locations(uffdmm_block(i), &l);
        located += l.count;
        changes += l.changes;
        acked += l.acked;
    }
    stat64_set(&uffdmm_stats.located, located);
    stat64_set(&uffdmm_stats.changes, changes);
    stat64_set(&uffdmm_stats.unacknowledged, changes - acked);
}

bool uffdmm_save_page(RAMBlock *rb, ram_addr_t offset, unsigned wanted,
                      ExternalPage *page)
{
    Error *err = NULL;

    if (!hostmem_external_migration_page(rb, offset, wanted, uffdmm_cancelled,
                                         page, &err)) {
        migrate_set_error(migrate_get_current(), err);
        error_free(err);
        return false;
    }
    trace_uffdmm_save_page(rb->idstr, offset, page->kind, page->was_located);
    switch (page->kind) {
    case EXTERNAL_PAGE_PINNED:
        stat64_add(&uffdmm_stats.by_content, 1);
        break;
    case EXTERNAL_PAGE_LOCATED:
        stat64_add(&uffdmm_stats.by_location, 1);
        stat64_add(&uffdmm_stats.located_bytes, qemu_ram_pagesize(rb));
        break;
    case EXTERNAL_PAGE_ZERO:
    case EXTERNAL_PAGE_COPY:
        stat64_add(&uffdmm_stats.bypass, 1);
        stat64_add(&uffdmm_stats.bypass_bytes, qemu_ram_pagesize(rb));
        break;
    }
    return true;
}

void uffdmm_unpin_page(RAMBlock *rb, ram_addr_t offset)
{
    hostmem_external_migration_unpin(rb, offset);
}

uint64_t uffdmm_located_bytes(void)
{
    return stat64_get(&uffdmm_stats.located_bytes);
}

static bool uffdmm_is_active(void *opaque)
{
    /* a destination without this section can still load all the rest */
    return uffdmm.session != 0;
}

static int uffdmm_stream_setup(QEMUFile *f, void *opaque, Error **errp)
{
    qemu_put_be32(f, UFFDMM_STREAM_BEGIN);
    qemu_put_be32(f, UFFDMM_STREAM_VERSION);
    qemu_put_be64(f, uffdmm.session);
    return 0;
}

static void uffdmm_pending(void *opaque, uint64_t *must_precopy,
                           uint64_t *can_postcopy)
{
    uffdmm_update_stats();
    *must_precopy += LOCATION_BYTES *
                     stat64_get(&uffdmm_stats.unacknowledged);
}

static int uffdmm_stream_iterate(QEMUFile *f, void *opaque)
{
    qemu_put_be32(f, UFFDMM_STREAM_GO_ON);
    /* RAM has nothing more to send: do not turn around at full speed */
    g_usleep(BACKLOG_PAUSE_US);
    return 1;
}

static int uffdmm_stream_complete(QEMUFile *f, void *opaque)
{
    Error *err = NULL;

    uffdmm_update_stats();
    qemu_put_be32(f, UFFDMM_STREAM_END);
    qemu_put_be32(f, uffdmm.blocks->len);
    for (guint i = 0; i < uffdmm.blocks->len; i++) {
        ExternalLocations l;

        if (!hostmem_external_migration_sent(uffdmm_block(i), &err)) {
            migrate_set_error(migrate_get_current(), err);
            error_free(err);
            return -EIO;
        }
        hostmem_external_migration_locations(uffdmm_block(i), &l);
        qemu_put_counted_string(f, l.name);
        qemu_put_be64(f, l.count);
        qemu_put_be64(f, l.digest);
        trace_uffdmm_locations(l.name, l.count, l.digest);
    }
    return 0;
}

/* ------------------------------------------------------------------------ */
/* Destination                                                               */

static int uffdmm_match_block(RAMBlock *rb, void *opaque)
{
    if (rb->external &&
        !strcmp(hostmem_external_region_name(rb), opaque)) {
        g_ptr_array_add(uffdmm.blocks, rb);
        return 1;
    }
    return 0;
}

/* Wait without holding up the main loop. */
static void uffdmm_wait_install(ExternalInstall *install)
{
    while (!hostmem_external_install_done(install)) {
        if (qemu_in_coroutine()) {
            qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, INSTALL_POLL_NS);
        } else {
            g_usleep(INSTALL_POLL_NS / 1000);
        }
    }
}

/* Read what the source says of one block, and ask its manager for that. */
static ExternalInstall *uffdmm_load_block(QEMUFile *f, Error **errp)
{
    ExternalLocations l = { 0 };
    char name[256];

    if (!qemu_get_counted_string(f, name)) {
        error_setg(errp, "the stream ends in the locations of pages");
        return NULL;
    }
    l.count = qemu_get_be64(f);
    l.digest = qemu_get_be64(f);
    g_ptr_array_set_size(uffdmm.blocks, 0);
    if (!foreach_not_ignored_block(uffdmm_match_block, name)) {
        error_setg(errp, "the stream has locations of pages of '%s', which is "
                   "no memory-backend-external here", name);
        return NULL;
    }
    l.name = name;
    trace_uffdmm_locations(l.name, l.count, l.digest);
    return hostmem_external_install_begin(uffdmm_block(0), uffdmm.loading, &l,
                                          INSTALL_TIMEOUT_MS);
}

static bool uffdmm_load_end(QEMUFile *f, Error **errp)
{
    g_autoptr(GPtrArray) installs = g_ptr_array_new();
    uint32_t nr = qemu_get_be32(f);
    bool ok = true;

    if (nr > BLOCKS_MAX || qemu_file_get_error(f)) {
        error_setg(errp, "the stream has locations of pages of %" PRIu32
                   " blocks", nr);
        return false;
    }
    uffdmm_end(true);
    uffdmm.blocks = g_ptr_array_new();
    /* all of them at once: the managers may be different ones */
    for (uint32_t i = 0; ok && i < nr; i++) {
        ExternalInstall *install = uffdmm_load_block(f, errp);

        if (install) {
            g_ptr_array_add(installs, install);
        }
        ok = install != NULL;
    }
    g_clear_pointer(&uffdmm.blocks, g_ptr_array_unref);
    for (guint i = 0; i < installs->len; i++) {
        ExternalInstall *install = g_ptr_array_index(installs, i);

        if (ok) {
            uffdmm_wait_install(install);
        }
        if (!hostmem_external_install_end(install, ok ? errp : NULL)) {
            ok = false;
        }
    }
    uffdmm.loading = 0;
    return ok;
}

static bool uffdmm_load(QEMUFile *f, Error **errp)
{
    uint32_t what = qemu_get_be32(f);
    uint32_t version;

    switch (what) {
    case UFFDMM_STREAM_BEGIN:
        version = qemu_get_be32(f);
        uffdmm.loading = qemu_get_be64(f);
        if (version != UFFDMM_STREAM_VERSION) {
            error_setg(errp, "locations of pages come in version %" PRIu32
                       ", only %d is understood", version,
                       UFFDMM_STREAM_VERSION);
            return false;
        }
        if (!migrate_swap_locations()) {
            error_setg(errp, "locations of pages come in: set the migration "
                       "capability 'swap-locations' here too");
            return false;
        }
        return true;
    case UFFDMM_STREAM_GO_ON:
        return true;
    case UFFDMM_STREAM_END:
        if (uffdmm.loading) {
            return uffdmm_load_end(f, errp);
        }
        /* fall through */
    default:
        error_setg(errp, "the locations of pages have an unexpected record of "
                   "type %" PRIu32, what);
        return false;
    }
}

static int uffdmm_load_state(QEMUFile *f, void *opaque, int version_id)
{
    Error *err = NULL;

    if (!uffdmm_load(f, &err)) {
        migrate_set_error(migrate_get_current(), err);
        error_report_err(err);
        return -EINVAL;
    }
    return 0;
}

/* ------------------------------------------------------------------------ */

void uffdmm_populate_info(MigrationInfo *info)
{
    if (!uffdmm_stats.used) {
        return;
    }
    info->swap_locations = g_new(SwapLocationsStats, 1);
    *info->swap_locations = (SwapLocationsStats) {
        .by_content = stat64_get(&uffdmm_stats.by_content),
        .by_location = stat64_get(&uffdmm_stats.by_location),
        .bypass = stat64_get(&uffdmm_stats.bypass),
        .bypass_bytes = stat64_get(&uffdmm_stats.bypass_bytes),
        .located = stat64_get(&uffdmm_stats.located),
        .location_bytes = LOCATION_BYTES * stat64_get(&uffdmm_stats.changes),
        .unacknowledged = stat64_get(&uffdmm_stats.unacknowledged),
    };
}

static SaveVMHandlers uffdmm_handlers = {
    .is_active = uffdmm_is_active,
    .save_setup = uffdmm_stream_setup,
    .save_live_iterate = uffdmm_stream_iterate,
    .state_pending_exact = uffdmm_pending,
    .state_pending_estimate = uffdmm_pending,
    .save_live_complete_precopy = uffdmm_stream_complete,
    .load_state = uffdmm_load_state,
};

void uffdmm_mig_init(void)
{
    register_savevm_live("uffdmm-locations", 0, 1, &uffdmm_handlers, &uffdmm);
}
