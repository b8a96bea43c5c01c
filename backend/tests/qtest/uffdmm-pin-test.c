/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * memory-backend-external: the count of mappings for writing
 *
 * An IDE disk on a null device that takes its time reads into guest memory,
 * so that the transfer can be looked at while it is in flight.
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "qemu/atomic.h"
#include "uffdmm-fake-manager.h"

#define RAM_SIZE (16 * 1024 * 1024)
#define PFN(n)   ((uint64_t)(n) * FAKE_PAGE_SIZE)

#define IDE_DEVFN  (1 << 3 | 1) /* of the PIIX3 */
#define BMDMA      0xc000
#define PRDT       PFN(16)
#define PRD_LAST   0x80000000u
#define DMA_ACTIVE 1

#define READ_DMA   0xc8
#define WRITE_DMA  0xca

static QTestState *start_disk(FakeManager *m, const char *latency_ns)
{
    return qtest_initf("-machine pc,memory-backend=mem0 -m 16M -nodefaults "
                       "-vga none -net none -bios %s "
                       "-object memory-backend-external,id=mem0,size=16M,"
                       "socket=%s -blockdev null-co,node-name=n0,size=1048576,"
                       "read-zeroes=on,latency-ns=%s "
                       "-device ide-hd,drive=n0,bus=ide.0", m->bios, m->path,
                       latency_ns);
}

static void config_write(QTestState *qts, uint8_t reg, uint32_t value)
{
    qtest_outl(qts, 0xcf8, 0x80000000u | IDE_DEVFN << 8 | reg);
    qtest_outl(qts, 0xcfc, value);
}

/* Begin to transfer sectors from or to these pieces of guest memory. */
static void dma_start(QTestState *qts, uint8_t command, uint8_t nr_sectors,
                      const uint32_t (*prds)[2], unsigned nr_prds)
{
    for (unsigned i = 0; i < nr_prds; i++) {
        qtest_writel(qts, PRDT + i * 8, prds[i][0]);
        qtest_writel(qts, PRDT + i * 8 + 4,
                     prds[i][1] | (i == nr_prds - 1 ? PRD_LAST : 0));
    }
    config_write(qts, 0x20, BMDMA);
    config_write(qts, 0x04, 1 | 4); /* I/O space, bus master */

    qtest_outb(qts, BMDMA, 0);
    qtest_outb(qts, BMDMA + 2, 6); /* clear interrupt and error */
    qtest_outl(qts, BMDMA + 4, PRDT);
    qtest_outb(qts, 0x1f6, 0xe0); /* LBA, first disk */
    qtest_outb(qts, 0x1f2, nr_sectors);
    qtest_outb(qts, 0x1f3, 0);
    qtest_outb(qts, 0x1f4, 0);
    qtest_outb(qts, 0x1f5, 0);
    qtest_outb(qts, 0x1f7, command);
    qtest_outb(qts, BMDMA, command == READ_DMA ? 9 : 1);
}

static void dma_wait(QTestState *qts)
{
    while (qtest_inb(qts, BMDMA + 2) & DMA_ACTIVE) {
        g_usleep(1000);
    }
}

/* How many pages have a count that is not zero; @expected: which, and @nr. */
static void assert_pinned(FakeRegion *r, const uint32_t *expected, unsigned nr)
{
    unsigned found = 0;

    for (uint32_t pfn = 0; pfn < RAM_SIZE / FAKE_PAGE_SIZE; pfn++) {
        uint32_t pins = qatomic_read(&r->pins[pfn]);

        if (pins) {
            g_assert_cmpuint(found, <, nr);
            g_assert_cmpuint(pfn, ==, expected[found]);
            g_assert_cmpuint(pins, ==, 1);
            found++;
        }
    }
    g_assert_cmpuint(found, ==, nr);
}

/* Counted while a transfer lasts, every page that it touches. */
static void test_read(void)
{
    static const uint32_t prds[][2] = {
        { PFN(100) + 2048, 4096 }, { PFN(300), 4096 },
    };
    static const uint32_t pages[] = { 100, 101, 300 };
    FakeManager *m = fake_manager_new();
    QTestState *qts = start_disk(m, "500000000");
    FakeRegion *r = &m->regions[0];

    assert_pinned(r, NULL, 0);
    dma_start(qts, READ_DMA, 16, prds, ARRAY_SIZE(prds));
    assert_pinned(r, pages, ARRAY_SIZE(pages));
    g_assert_true(qtest_inb(qts, BMDMA + 2) & DMA_ACTIVE);
    dma_wait(qts);
    assert_pinned(r, NULL, 0);
    /* the transfer took place */
    g_assert_cmpuint(qtest_readb(qts, PFN(101)), ==, 0);
    g_assert_cmpuint(qtest_readb(qts, PFN(101) + 2048), ==,
                     fake_manager_byte(101));

    qtest_quit(qts);
    fake_manager_free(m);
}

/* A disk that is written to only reads guest memory. */
static void test_write(void)
{
    static const uint32_t prds[][2] = { { PFN(100), 4096 } };
    FakeManager *m = fake_manager_new();
    QTestState *qts = start_disk(m, "200000000");

    dma_start(qts, WRITE_DMA, 8, prds, ARRAY_SIZE(prds));
    assert_pinned(&m->regions[0], NULL, 0);
    g_assert_true(qtest_inb(qts, BMDMA + 2) & DMA_ACTIVE);
    dma_wait(qts);

    qtest_quit(qts);
    fake_manager_free(m);
}

/* A vector that is no whole number of sectors is trimmed: nothing stays. */
static void test_trimmed(void)
{
    static const uint32_t prds[][2] = {
        { PFN(100) + 4000, 300 }, { PFN(300), 400 },
    };
    FakeManager *m = fake_manager_new();
    QTestState *qts = start_disk(m, "1000000");

    dma_start(qts, READ_DMA, 8, prds, ARRAY_SIZE(prds));
    dma_wait(qts);
    assert_pinned(&m->regions[0], NULL, 0);

    qtest_quit(qts);
    fake_manager_free(m);
}

/* A count that the manager has spoiled does not wrap around. */
static void test_spoiled(void)
{
    static const uint32_t prds[][2] = { { PFN(100), 4096 } };
    FakeManager *m = fake_manager_new();
    QTestState *qts = start_disk(m, "300000000");
    FakeRegion *r = &m->regions[0];

    dma_start(qts, READ_DMA, 8, prds, ARRAY_SIZE(prds));
    g_assert_cmpuint(qatomic_read(&r->pins[100]), ==, 1);
    qatomic_set(&r->pins[100], 0);
    dma_wait(qts);
    assert_pinned(r, NULL, 0);

    qtest_quit(qts);
    fake_manager_free(m);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    qtest_add_func("/uffdmm/pin/read", test_read);
    qtest_add_func("/uffdmm/pin/write", test_write);
    qtest_add_func("/uffdmm/pin/trimmed", test_trimmed);
    qtest_add_func("/uffdmm/pin/spoiled", test_spoiled);
    return g_test_run();
}
