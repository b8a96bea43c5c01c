/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "queue.h"

#include "vm.h"

void queue_init(struct vm *vm)
{
    pthread_mutex_init(&vm->queue_lock, NULL);
    vm->queue.next = vm->queue.prev = &vm->queue;
}

void queue_push(struct vm *vm, struct block *b)
{
    /* the common case, a block with other resident pages, takes no lock */
    if (atomic_load(&b->queued) || atomic_exchange(&b->queued, true)) {
        return;
    }
    pthread_mutex_lock(&vm->queue_lock);
    b->prev = vm->queue.prev;
    b->next = &vm->queue;
    b->prev->next = b;
    vm->queue.prev = b;
    pthread_mutex_unlock(&vm->queue_lock);
}

void queue_touch(struct vm *vm, struct block *b)
{
    pthread_mutex_lock(&vm->queue_lock);
    if (atomic_load(&b->queued) && b->next) {
        b->prev->next = b->next;
        b->next->prev = b->prev;
        b->prev = vm->queue.prev;
        b->next = &vm->queue;
        b->prev->next = b;
        vm->queue.prev = b;
    }
    pthread_mutex_unlock(&vm->queue_lock);
}

static void unlink_block(struct block *b)
{
    b->prev->next = b->next;
    b->next->prev = b->prev;
    b->next = b->prev = NULL;
    /*
     * From here on a fill queues the block again.  It must not be cleared after
     * the pages were looked at: a page filled in between would be forgotten.
     */
    atomic_store(&b->queued, false);
}

struct block *queue_pop(struct vm *vm)
{
    struct block *b = NULL;

    pthread_mutex_lock(&vm->queue_lock);
    if (vm->queue.next != &vm->queue) {
        b = vm->queue.next;
        unlink_block(b);
    }
    pthread_mutex_unlock(&vm->queue_lock);
    return b;
}

void queue_put_back(struct vm *vm, struct block *b)
{
    if (atomic_exchange(&b->queued, true)) {
        return; /* a fill was faster */
    }
    pthread_mutex_lock(&vm->queue_lock);
    b->prev = &vm->queue;
    b->next = vm->queue.next;
    b->next->prev = b;
    vm->queue.next = b;
    pthread_mutex_unlock(&vm->queue_lock);
}

void queue_remove_region(struct vm *vm, struct region *r)
{
    struct block *b, *next;

    pthread_mutex_lock(&vm->queue_lock);
    for (b = vm->queue.next; b != &vm->queue; b = next) {
        next = b->next;
        if (b->region == r) {
            unlink_block(b);
        }
    }
    pthread_mutex_unlock(&vm->queue_lock);
}
