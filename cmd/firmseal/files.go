package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/firmseal/firmseal/internal/problem"
)

// readInput reads a small file, or standard input for "-".
func (a *app) readInput(path string, most int64) ([]byte, error) {
	b, err := a.readSome(path, most)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > most {
		return nil, problem.New(problem.TooLarge, "%s is too large", path).Seen("more than %d bytes", most)
	}
	return b, nil
}

// readSome reads a file, or standard input for "-", to one byte more than most, so that whoever decides
// about its form sees that it is too large.
func (a *app) readSome(path string, most int64) ([]byte, error) {
	var r io.Reader = a.stdin
	if path != "-" {
		f, err := openFile(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, problem.New(problem.Usage, "%s cannot be read", path).Seen("%v", err).WithHint("check the file and its disk").Because(err)
	}
	return b, nil
}

func openFile(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		dir := filepath.Dir(path)
		why := "no such name in " + dir
		if _, err := os.Stat(dir); err != nil {
			why = "there is no directory " + dir
		}
		return nil, problem.New(problem.NotFound, "there is no file %s", path).Seen("%s", why).WithHint("check the name of the file").Because(err)
	}
	if err != nil {
		why := err
		var pe *fs.PathError
		if errors.As(err, &pe) {
			why = pe.Err
		}
		return nil, problem.New(problem.Usage, "%s cannot be read", path).Seen("%v", why).WithHint("check who may read it, and that it is a file").Because(err)
	}
	if st, err := f.Stat(); err != nil || st.IsDir() {
		f.Close()
		return nil, problem.New(problem.Usage, "%s is not a file", path).Seen("it is a directory").WithHint("name a file in it")
	}
	return f, nil
}

// output is a file that a command writes.
type output struct {
	path  string
	write func(w io.Writer) error
}

// writeOutput writes a file whole or not at all.
func writeOutput(path string, write func(w io.Writer) error) error {
	return writeOutputs(output{path, write})
}

// writeOutputs writes files that belong together: none gets its name before all
// are whole and on the disk. A crash among the renames leaves whole files, of
// which some may be missing; running the command again writes all.
func writeOutputs(list ...output) (err error) {
	temps := make([]string, 0, len(list))
	defer func() {
		for _, t := range temps {
			os.Remove(t) // gone already where all went well
		}
	}()
	for _, o := range list {
		f, err := os.CreateTemp(filepath.Dir(o.path), "."+filepath.Base(o.path)+".tmp-*")
		if err != nil {
			return unwritable(o.path, err)
		}
		temps = append(temps, f.Name())
		err = o.write(f)
		if err == nil {
			err = f.Chmod(0o644)
		}
		if err == nil {
			err = f.Sync()
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return unwritable(o.path, err)
		}
	}
	for i, o := range list {
		if err := os.Rename(temps[i], o.path); err != nil {
			return unwritable(o.path, err)
		}
	}
	return nil
}

// unwritable explains what the disk said; what is not the disk's stays as it is.
func unwritable(path string, err error) error {
	var pe *fs.PathError
	var le *os.LinkError
	switch {
	case errors.As(err, &pe):
		return problem.New(problem.Usage, "%s cannot be written", path).Seen("%v", pe.Err).Because(err)
	case errors.As(err, &le):
		return problem.New(problem.Usage, "%s cannot be written", path).Seen("%v", le.Err).Because(err)
	}
	return err
}

// short is the beginning of a digest or id, for people.
func short(s string) string {
	if len(s) > 12 {
		return s[:12]
	}
	return s
}
