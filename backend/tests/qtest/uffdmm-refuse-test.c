/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * memory-backend-external against a fake manager: what must be refused
 *
 * Each case checks the message, because it is all that a user gets.
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "uffdmm-fake-manager.h"
#include <sys/socket.h>

#define BARE "-nodefaults -vga none -net none "
#define PC   "-machine pc,memory-backend=mem0 -m 16M " BARE

static void assert_in(const char *part, const char *text)
{
    if (!strstr(text, part)) {
        g_error("'%s' is not in '%s'", part, text);
    }
}

/* QEMU must end by itself, not by a signal, and say why. */
static void assert_no_start_accel(const char *accel, const char *args,
                                  const char *part)
{
    g_autofree char *cmd = g_strdup_printf("%s -display none -accel %s %s",
                                           getenv("QTEST_QEMU_BINARY"), accel,
                                           args);
    g_autofree char *err = NULL;
    g_auto(GStrv) argv = NULL;
    int status;

    g_assert_true(g_shell_parse_argv(cmd, NULL, &argv, NULL));
    g_assert_true(g_spawn_sync(NULL, argv, NULL,
                               G_SPAWN_SEARCH_PATH |
                               G_SPAWN_LEAVE_DESCRIPTORS_OPEN,
                               NULL, NULL, NULL, &err, &status, NULL));
    g_assert_true(WIFEXITED(status));
    assert_in(part, err);
    g_assert_cmpint(WEXITSTATUS(status), ==, 1);
}

static void assert_no_start(const char *args, const char *part)
{
    assert_no_start_accel("qtest", args, part);
}

static void assert_qmp_error(QTestState *qts, const char *part,
                             const char *command, const char *arguments)
{
    QDict *rsp = qtest_qmp(qts, "{'execute': %s, 'arguments': %p}", command,
                           qobject_from_json(arguments, &error_abort));

    if (!qdict_haskey(rsp, "error")) {
        g_error("%s %s is not refused", command, arguments);
    }
    assert_in(part, qdict_get_str(qdict_get_qdict(rsp, "error"), "desc"));
    qobject_unref(rsp);
}

/* A backend with these properties, on a manager that does what it should */
static void refuse_props(const char *props, const char *part)
{
    FakeManager *m = fake_manager_new();
    g_autofree char *args = NULL;

    args = g_strdup_printf("-machine none -object memory-backend-external,"
                           "id=mem0,socket=%s,%s", m->path, props);
    assert_no_start(args, part);
    fake_manager_wait(m, m->regions[0].sock < 0);
    fake_manager_free(m);
}

static void test_properties(void)
{
    g_autofree char *name = g_strnfill(64, 'n');
    g_autofree char *vm_name = g_strdup_printf("size=16M,vm-name=%s", name);

    refuse_props("size=16M,share=off", "cannot have share=off");
    refuse_props("size=16M,prealloc=on", "cannot have prealloc=on");
    refuse_props("size=5000", "size 5000 of memory-backend-external 'mem0' "
                 "is not a multiple of the page size, 4096");
    refuse_props("size=3M,hugetlb=on", "size 3145728 of "
                 "memory-backend-external 'mem0' is not a multiple of the "
                 "page size, 2097152");
    refuse_props("size=16M,hugetlb=on,hugetlbsize=1G", "hugetlbsize "
                 "1073741824 of memory-backend-external 'mem0' is not "
                 "2097152, the only size of huge pages");
    refuse_props("size=16M,hugetlbsize=2M", "needs hugetlb=on");
    refuse_props("size=16M,hugetlb=on,hugetlbsize=0", "cannot be 0");
    refuse_props("size=16M,shards=0", "'shards' of memory-backend-external "
                 "is 0, not in the range 1 to 8");
    refuse_props("size=16M,shards=9", "is 9, not in the range 1 to 8");
    refuse_props("size=16M,reconnect-ms=0", "is 0, not in the range 1 to");
    refuse_props("size=16M,vm-name=", "vm-name '' of");
    refuse_props(vm_name, "is not 1 to 63 bytes long");
    refuse_props("size=16M -overcommit mem-lock=on", "mem-lock");
}

static void test_socket(void)
{
    assert_no_start("-machine none -object memory-backend-external,id=mem0,"
                    "size=16M", "'socket' is missing");
    assert_no_start("-machine none -object memory-backend-external,id=mem0,"
                    "size=16M,socket=/nonexistent/sock",
                    "cannot connect to the memory manager at "
                    "'/nonexistent/sock': No such file or directory");
    assert_no_start("-machine none -object memory-backend-external,id=mem0,"
                    "size=16M,socket=/nonexistent/sock",
                    "Is uffdmm-manager running");
    assert_no_start("-machine none -object memory-backend-external,id=mem0,"
                    "size=16M,socket=/dev/null", "Connection refused");
}

static void test_manager(void)
{
    static const struct {
        FakeFault fault;
        const char *message;
        const char *props;
        unsigned nr_arenas;
    } cases[] = {
        { FAKE_REFUSE_PEER, "user 77 may not use this manager" },
        { FAKE_MAGIC, "does not speak the uffdmm protocol (magic 0x50545448" },
        { FAKE_VERSION, "speaks versions 4 to 4 of the uffdmm protocol, this "
          "QEMU versions 3 to 3" },
        { FAKE_REFUSE, "the store has no room for 1 GiB: remove a guest" },
        { FAKE_REFUSE, "the store has no room for 1 GiB: remove a guest",
          ",hugetlb=on" },
        { FAKE_FEW_FDS, "with 24 bytes and 2 descriptors" },
        { FAKE_SHORT_MEMFD, "has 16773120 bytes, 16777216 are needed" },
        { FAKE_UNSEALED, "is not a memfd that is sealed against shrinking" },
        { FAKE_TABLE, "is for 4097 pages of 4096 bytes instead of 4096" },
        { FAKE_PINS, "the pins of the page-state table, at offset " },
        { FAKE_PAGES, "has pages of 4096 bytes instead of 2097152",
          ",hugetlb=on" },
        { FAKE_OK, "has 6 arenas, with 8 shards there can be 5 at most",
          ",shards=8", 6 },
        { FAKE_REFUSE_ATTACH, "no thread left for this guest" },
        { FAKE_SILENT, "the memory manager did not answer in time" },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        FakeManager *m = fake_manager_new();
        g_autofree char *args = NULL;

        m->fault = cases[i].fault;
        m->nr_arenas = cases[i].nr_arenas;
        args = g_strdup_printf(PC "-bios %s -object memory-backend-external,"
                               "id=mem0,size=16M,socket=%s%s", m->bios,
                               m->path, cases[i].props ?: "");
        assert_no_start(args, cases[i].message);
        g_assert_cmpuint(m->connects, ==, 1);
        fake_manager_free(m);
    }
}

/* The feature comes second: it is refused. */
static void refuse_with_backend(const char *args, const char *part)
{
    FakeManager *m = fake_manager_new();
    g_autofree char *all = NULL;

    all = g_strdup_printf(PC "-bios %s -object memory-backend-external,"
                          "id=mem0,size=16M,socket=%s %s", m->bios, m->path,
                          args);
    assert_no_start(all, part);
    fake_manager_free(m);
}

static void test_features(void)
{
    if (qtest_has_device("vhost-user-fs-pci")) {
        refuse_with_backend("-chardev socket,id=c0,path=/tmp/nonexistent,"
                            "server=on,wait=off "
                            "-device vhost-user-fs-pci,chardev=c0,tag=t",
                            "vhost-user cannot be used together with");
    }
    if (qtest_has_device("vhost-scsi-pci")) {
        refuse_with_backend("-device vhost-scsi-pci,wwpn=naa.0",
                            "vhost-scsi cannot be used together with");
    }
    if (qtest_has_device("scsi-generic")) {
        refuse_with_backend("-device virtio-scsi-pci "
                            "-drive if=none,id=d0,driver=null-co "
                            "-device scsi-generic,drive=d0",
                            "scsi-generic cannot be used together with");
        refuse_with_backend("-device virtio-scsi-pci "
                            "-drive if=none,id=d0,driver=null-co "
                            "-device scsi-block,drive=d0",
                            "scsi-block cannot be used together with");
    }
    if (qtest_has_device("virtio-gpu-pci")) {
        refuse_with_backend("-device virtio-gpu-pci,blob=on",
                            "virtio-gpu with blob=on cannot be used");
    }
    if (qtest_has_device("x-pci-proxy-dev")) {
        g_autofree char *proxy = NULL;
        int sockets[2];

        g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), ==, 0);
        proxy = g_strdup_printf("-device x-pci-proxy-dev,fd=%d", sockets[0]);
        refuse_with_backend(proxy, "x-pci-proxy-dev cannot be used together");
        close(sockets[0]);
        close(sockets[1]);
    }
    if (qtest_has_machine("x-remote")) {
        FakeManager *m = fake_manager_new();
        g_autofree char *remote = NULL;

        remote = g_strdup_printf("-machine x-remote -object "
                                 "memory-backend-external,id=mem0,size=16M,"
                                 "socket=%s", m->path);
        assert_no_start(remote, "the machine x-remote (multi-process, "
                        "vfio-user) cannot be used together with");
        fake_manager_free(m);
    }
}

static void test_ivshmem(void)
{
    FakeManager *m = fake_manager_new();
    g_autofree char *args = NULL;

    if (qtest_has_device("ivshmem-plain")) {
        args = g_strdup_printf("-machine pc -m 16M " BARE "-bios %s "
                               "-object memory-backend-external,id=ext,"
                               "size=16M,socket=%s "
                               "-device ivshmem-plain,memdev=ext", m->bios,
                               m->path);
        assert_no_start(args, "ivshmem cannot share the memory of "
                        "memory-backend-external 'ext'");
    } else {
        g_test_skip("no ivshmem");
    }
    fake_manager_free(m);
}

static void test_nested(void)
{
    FakeManager *m = fake_manager_new();
    g_autofree char *args = NULL;

    if (!qtest_has_accel("kvm")) {
        g_test_skip("no KVM");
        goto out;
    }
    /* forced, because the host need not have it */
    args = g_strdup_printf(PC "-bios %s -cpu qemu64,svm=on,"
                           "x-force-features=on "
                           "-object memory-backend-external,id=mem0,size=16M,"
                           "socket=%s", m->bios, m->path);
    assert_no_start_accel("kvm", args, "nested virtualization (vmx or svm) "
                          "cannot be used together with");
out:
    fake_manager_free(m);
}

#define OBJECT_ADD                                                  \
    "{\"qom-type\": \"memory-backend-external\", \"id\": \"hot\"," \
    " \"size\": 16777216, \"socket\": \"%s\"}"

/* A backend that is plugged in has its properties fixed. */
static void test_hotplug(void)
{
    FakeManager *m = fake_manager_new();
    g_autofree char *object = g_strdup_printf(OBJECT_ADD, m->path);
    QTestState *qts = qtest_initf("-machine q35 -m 16M " BARE "-bios %s",
                                  m->bios);

    qtest_qmp_assert_success(qts, "{'execute': 'object-add',"
                             " 'arguments': %p}",
                             qobject_from_json(object, &error_abort));
    assert_qmp_error(qts, "prealloc=on", "qom-set",
                     "{\"path\": \"/objects/hot\","
                     " \"property\": \"prealloc\", \"value\": true}");
    qtest_quit(qts);
    fake_manager_free(m);
}

static void test_migration(void)
{
    static const char *const capabilities[] = {
        "postcopy-ram", "background-snapshot", "x-ignore-shared",
    };
    FakeManager *m = fake_manager_new();
    g_autofree char *object = g_strdup_printf(OBJECT_ADD, m->path);
    QTestState *qts = qtest_init("-machine none");

    /* hot-plug after the capability */
    qtest_qmp_assert_success(qts, "{'execute': 'migrate-set-capabilities',"
                             " 'arguments': {'capabilities': ["
                             " {'capability': 'x-ignore-shared',"
                             "  'state': true}]}}");
    assert_qmp_error(qts, "migration capability 'x-ignore-shared' cannot be "
                     "used together with memory-backend-external",
                     "object-add", object);
    qtest_qmp_assert_success(qts, "{'execute': 'migrate-set-capabilities',"
                             " 'arguments': {'capabilities': ["
                             " {'capability': 'x-ignore-shared',"
                             "  'state': false}]}}");
    qtest_qmp_assert_success(qts, "{'execute': 'object-add',"
                             " 'arguments': %p}",
                             qobject_from_json(object, &error_abort));

    /* the capability after hot-plug */
    for (int i = 0; i < ARRAY_SIZE(capabilities); i++) {
        g_autofree char *name = NULL;
        g_autofree char *set = NULL;

        name = g_strdup_printf("capability '%s' cannot be used",
                               capabilities[i]);
        set = g_strdup_printf("{\"capabilities\": [{\"capability\": \"%s\","
                              " \"state\": true}]}", capabilities[i]);
        assert_qmp_error(qts, name, "migrate-set-capabilities", set);
    }
    assert_qmp_error(qts, "parameter 'direct-io' cannot be used",
                     "migrate-set-parameters", "{\"direct-io\": true}");

    qtest_qmp_assert_success(qts, "{'execute': 'migrate-set-parameters',"
                             " 'arguments': {'mode': 'cpr-reboot'}}");
    assert_qmp_error(qts, "memory-backend-external 'hot' cannot be handed to "
                     "another QEMU by a CPR migration",
                     "migrate", "{\"uri\": \"file:/dev/null\"}");

    qtest_quit(qts);
    fake_manager_free(m);
}

static void test_migration_global(void)
{
    FakeManager *m = fake_manager_new();
    g_autofree char *args = NULL;

    args = g_strdup_printf("-machine none -global "
                           "migration.x-background-snapshot=on -object "
                           "memory-backend-external,id=mem0,size=16M,"
                           "socket=%s", m->path);
    assert_no_start(args, "migration capability 'background-snapshot' cannot "
                    "be used together with memory-backend-external");
    fake_manager_free(m);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/uffdmm-refuse/properties", test_properties);
    qtest_add_func("/uffdmm-refuse/socket", test_socket);
    qtest_add_func("/uffdmm-refuse/manager", test_manager);
    qtest_add_func("/uffdmm-refuse/features", test_features);
    qtest_add_func("/uffdmm-refuse/ivshmem", test_ivshmem);
    qtest_add_func("/uffdmm-refuse/nested", test_nested);
    qtest_add_func("/uffdmm-refuse/hotplug", test_hotplug);
    qtest_add_func("/uffdmm-refuse/migration", test_migration);
    qtest_add_func("/uffdmm-refuse/migration-global", test_migration_global);

    return g_test_run();
}
