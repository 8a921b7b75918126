package migrator

import (
	"errors"
	"fmt"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// explain adds to an error of the server what to do about it.
func explain(err error, role string) error {
	switch code := pgerr.Code(err); {
	case code == pgerr.InsufficientPrivilege && errors.Is(err, lockerr.Schema):
	case code == pgerr.InsufficientPrivilege:
		return refuse(lockerr.Schema, "role %s may not migrate: %w. The role of a service need not: migrate as the role that owns the schema "+
			"pgbaton, or shall own it, which needs CREATE on the database and on the schema of the version table, and give the "+
			"service its grants", quote(role), err)
	case code == pgerr.LockNotAvailable:
		return fmt.Errorf("%w (a table was in use for longer than this role's lock_timeout: migrate again, when less is "+
			"going on or with a longer one)", err)
	}
	return err
}

// refusal is an error that matches a sentinel without repeating its text.
type refusal struct {
	kind error
	said error
}

func refuse(kind error, format string, args ...any) error {
	return &refusal{kind: kind, said: fmt.Errorf(format, args...)}
}

func (r *refusal) Error() string   { return r.said.Error() }
func (r *refusal) Unwrap() []error { return []error{r.kind, r.said} }
