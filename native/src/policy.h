/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The settings of a VM that can change while it runs: limit and read-ahead. */
#ifndef UFFDMM_POLICY_H
#define UFFDMM_POLICY_H

#include <stddef.h>

#include "vm.h"

/* The defaults of the command line. */
void policy_init(struct vm *vm);

/*
 * A region came: the limit follows the VM's RAM where it is a share of it, and the
 * store must be able to take what the limit leaves out.  0, or a negative errno
 * with @err.
 */
int policy_region_added(struct vm *vm, char *err, size_t err_len);

/* Changes the fields that @p names, all or none.  0, or a negative errno with @err. */
int policy_set(struct vm *vm, const struct uffdmm_policy *p, char *err, size_t err_len);

/* All settings in force. */
void policy_get(const struct vm *vm, struct uffdmm_policy *p);

#endif
