package tlog

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/db/dbtest"
)

// crashHere is the process that is killed: it opens the log, appends, prints
// the id of each leaf that it was told is included, and kills itself at the
// label's n-th time.
func crashHere() {
	url := os.Getenv("FIRMSEAL_TLOG_CRASH_URL")
	if url == "" {
		return
	}
	label := os.Getenv("FIRMSEAL_TLOG_CRASH_LABEL")
	left, err := strconv.Atoi(os.Getenv("FIRMSEAL_TLOG_CRASH_TIMES"))
	if err == nil {
		err = untilKilled(url, label, left)
	}
	fmt.Fprintln(os.Stderr, "was not killed:", err)
	os.Exit(1)
}

func untilKilled(url, label string, left int) error {
	ctx := context.Background()
	logger := slog.New(slog.DiscardHandler)
	d, err := db.Open(ctx, url, db.Options{Logger: logger})
	if err != nil {
		return err
	}
	s, err := note.NewSigner(os.Getenv("FIRMSEAL_TLOG_CRASH_SKEY"))
	if err != nil {
		return err
	}
	l, err := Open(ctx, d, Options{
		Origin: testOrigin, Signer: s, VKey: os.Getenv("FIRMSEAL_TLOG_CRASH_VKEY"),
		Second: FilePlace(os.Getenv("FIRMSEAL_TLOG_CRASH_PLACE")), Logger: logger,
		TestOnlyStep: func(at string) {
			if at != label {
				return
			}
			if left--; left == 0 {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		},
	})
	if err != nil {
		return err
	}
	if err := l.Refusal(); err != nil {
		return err
	}
	for i := range 1000 {
		var p Pending
		if err := d.Update(ctx, func(tx *db.Tx) (err error) {
			p, err = l.Append(tx, leafOf(i))
			return err
		}); err != nil {
			return err
		}
		fmt.Println("committed", p.ID)
		if _, err := l.Wait(ctx, p); err != nil {
			return err
		}
		fmt.Println("included", p.ID)
	}
	return nil
}

// Killed at each step of the order, at a first start and later: the log opens
// cleanly, what was committed is included, and nothing that was published is
// taken back.
func TestKilledAtEachStep(t *testing.T) {
	t.Parallel()
	for _, label := range []string{"claimed", "committed", "swapped", "signed", "published"} {
		for _, times := range []int{1, 2, 9} {
			if label == "claimed" && times > 1 {
				continue
			}
			t.Run(fmt.Sprintf("%s-%d", label, times), func(t *testing.T) {
				t.Parallel()
				t.Run("sqlite", func(t *testing.T) {
					t.Parallel()
					killed(t, "sqlite:"+filepath.Join(t.TempDir(), "log.db"), label, times)
				})
				t.Run("postgres", func(t *testing.T) {
					t.Parallel()
					killed(t, dbtest.PostgresURL(t), label, times)
				})
			})
		}
	}
}

func killed(t *testing.T, url, label string, times int) {
	o := options(t, placeIn(t))
	skey, vkey, err := note.GenerateKey(nil, testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	place := placeIn(t)
	if o.Signer, err = note.NewSigner(skey); err != nil {
		t.Fatal(err)
	}
	o.VKey, o.Second = vkey, FilePlace(place)
	seen := int64(0)
	var ids []string
	for range 2 { // the second kill comes on a log that has recovered
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(),
			"FIRMSEAL_TLOG_CRASH_URL="+url, "FIRMSEAL_TLOG_CRASH_LABEL="+label, "FIRMSEAL_TLOG_CRASH_TIMES="+strconv.Itoa(times),
			"FIRMSEAL_TLOG_CRASH_SKEY="+skey, "FIRMSEAL_TLOG_CRASH_VKEY="+vkey, "FIRMSEAL_TLOG_CRASH_PLACE="+place)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); err == nil || !ok || ws.Signal() != syscall.SIGKILL {
			t.Fatalf("it was to be killed: %v\n%s", err, stderr.String())
		}
		included := int64(0)
		for sc := bufio.NewScanner(strings.NewReader(string(out))); sc.Scan(); {
			if id, ok := strings.CutPrefix(sc.Text(), "committed "); ok {
				ids = append(ids, id)
			} else {
				included++
			}
		}
		d := dbtest.Open(t, url)
		l := open(t, d, o)
		for _, id := range ids {
			if _, err := l.Wait(t.Context(), Pending{id}); err != nil {
				t.Fatalf("leaf %s was committed before the kill: %v", id, err)
			}
			if _, err := l.ProofOf(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		rep, err := l.Fsck(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if rep.Size < seen+included {
			t.Fatalf("%d leaves after the kill, %d were included before", rep.Size, seen+included)
		}
		seen = rep.Size
		l.Close()
		if label == "claimed" {
			return // a second place is claimed once
		}
	}
}
