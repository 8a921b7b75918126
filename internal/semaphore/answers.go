package semaphore

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/pgbaton/pgbaton/internal/pgtext"
	"github.com/pgbaton/pgbaton/internal/sidecar"
)

// claimAnswer is what pgbaton.claim_slots returns.
type claimAnswer struct {
	capacity, granted int // a capacity of 0 is NULL
	slots             []int32
	token             int64
}

func parseClaim(rows [][][]byte) (claimAnswer, error) {
	if len(rows) != 1 || len(rows[0]) != 4 {
		return claimAnswer{}, fmt.Errorf("%w: a claim has %d rows", pgtext.ErrAnswer, len(rows))
	}
	var answer claimAnswer
	var errs [4]error
	row := rows[0]
	if row[0] != nil {
		answer.capacity, errs[0] = strconv.Atoi(string(row[0]))
	}
	if row[1] != nil {
		answer.granted, errs[1] = strconv.Atoi(string(row[1]))
	}
	if answer.granted > 0 {
		answer.slots, errs[2] = pgtext.ParseInts[int32](row[2])
		answer.token, errs[3] = strconv.ParseInt(string(row[3]), 10, 64)
	}
	return answer, errors.Join(errs[:]...)
}

// freedAnswer is what pgbaton.free_slots returns.
type freedAnswer struct {
	places  map[int32]struct{}
	awaited []int64
}

func parseFreed(op *sidecar.Op) (freedAnswer, error) {
	if op.Err != nil {
		return freedAnswer{}, op.Err
	}
	if len(op.Rows) != 1 || len(op.Rows[0]) != 2 {
		return freedAnswer{}, pgtext.ErrAnswer
	}
	places, err1 := parsePlaces(op.Rows[0][0])
	awaited, err2 := pgtext.ParseInts[int64](op.Rows[0][1])
	return freedAnswer{places, awaited}, errors.Join(err1, err2)
}

func parseRenewed(op *sidecar.Op) (map[int32]struct{}, error) {
	if op.Err != nil {
		return nil, op.Err
	}
	if len(op.Rows) != 1 || len(op.Rows[0]) != 1 {
		return nil, pgtext.ErrAnswer
	}
	return parsePlaces(op.Rows[0][0])
}

// parsePlaces reads places in the arrays that were sent, counted from 1.
func parsePlaces(text []byte) (map[int32]struct{}, error) {
	list, err := pgtext.ParseInts[int32](text)
	places := make(map[int32]struct{}, len(list))
	for _, place := range list {
		places[place] = struct{}{}
	}
	return places, err
}
