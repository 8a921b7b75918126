package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// schemaComment marks the schema as the demo's own: no other schema of that name is ever dropped.
const schemaComment = "made by pgbaton demo, may be dropped"

const cleanUpTimeout = 10 * time.Second

// The rows that the workers change.
const (
	ada   int64 = 1
	grace int64 = 2

	firstSalary int64 = 1_000_000
)

const sqlSchemaComment = `
SELECT coalesce(obj_description(oid, 'pg_namespace'), '')
FROM pg_namespace
WHERE nspname = 'pgbaton_demo'`

// fencePrefix begins the names of the resources that the demo fences; they are no part of its schema.
const fencePrefix = "pgbaton_demo/frozen/"

// semaphorePrefix begins the names of the demo's semaphores, which are no part of its schema either.
const semaphorePrefix = "pgbaton_demo/"

const sqlDropSchema = `
DROP SCHEMA IF EXISTS pgbaton_demo CASCADE;
DO $$ BEGIN
    DELETE FROM pgbaton.fence WHERE starts_with(resource, '` + fencePrefix + `');
    DELETE FROM pgbaton.leader WHERE name = '` + leaderName + `';
EXCEPTION WHEN insufficient_privilege THEN NULL; -- rows stay; pgbaton.prune_fences removes those of fences
END $$;
DO $$ BEGIN
    DELETE FROM pgbaton.semaphore WHERE starts_with(name, '` + semaphorePrefix + `');
EXCEPTION WHEN insufficient_privilege THEN NULL; -- it stays, for the next demo
END $$`

const sqlCreateSchema = `
CREATE SCHEMA pgbaton_demo;
COMMENT ON SCHEMA pgbaton_demo IS '` + schemaComment + `';
CREATE TABLE pgbaton_demo.employee (
    id      bigint PRIMARY KEY,
    name    text   NOT NULL,
    salary  bigint NOT NULL,
    version bigint NOT NULL DEFAULT 0
);
INSERT INTO pgbaton_demo.employee (id, name, salary)
VALUES (1, 'Ada', 0), (2, 'Grace', 0);
CREATE TABLE pgbaton_demo.hall (
    inside integer NOT NULL DEFAULT 0,
    peak   integer NOT NULL DEFAULT 0,
    visits integer NOT NULL DEFAULT 0
);
INSERT INTO pgbaton_demo.hall DEFAULT VALUES;`

// checkSchema refuses to go on when the schema of that name is somebody else's.
func checkSchema(ctx context.Context, pool *pgxpool.Pool) error {
	var comment string
	err := pool.QueryRow(ctx, sqlSchemaComment).Scan(&comment)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("look for schema pgbaton_demo: %w", err)
	case comment != schemaComment:
		return errors.New("the database has a schema pgbaton_demo that this command did not make: rename or drop it")
	}
	return nil
}

// createSchema makes the demo's schema, in place of one that an earlier demo left behind.
func createSchema(ctx context.Context, pool *pgxpool.Pool) error {
	if _, err := pool.Exec(ctx, sqlDropSchema+";"+sqlCreateSchema); err != nil {
		return fmt.Errorf("create schema pgbaton_demo: %w", err)
	}
	return nil
}

// dropSchema works after the end of ctx too.
func dropSchema(ctx context.Context, pool *pgxpool.Pool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTimeout)
	defer cancel()
	if _, err := pool.Exec(ctx, sqlDropSchema); err != nil {
		return fmt.Errorf("drop schema pgbaton_demo: %w", err)
	}
	return nil
}

const sqlResetSalaries = `
UPDATE pgbaton_demo.employee
SET salary = $1`

const sqlReadSalary = `
SELECT salary
FROM pgbaton_demo.employee
WHERE id = $1`

const sqlWriteSalary = `
UPDATE pgbaton_demo.employee
SET salary = $2
WHERE id = $1`

func resetSalaries(ctx context.Context, pool *pgxpool.Pool) error {
	if _, err := pool.Exec(ctx, sqlResetSalaries, firstSalary); err != nil {
		return fmt.Errorf("reset salaries: %w", err)
	}
	return nil
}

// querier is a pool or a transaction.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func readSalary(ctx context.Context, db querier, id int64) (int64, error) {
	var salary int64
	if err := db.QueryRow(ctx, sqlReadSalary, id).Scan(&salary); err != nil {
		return 0, fmt.Errorf("read salary: %w", err)
	}
	return salary, nil
}
