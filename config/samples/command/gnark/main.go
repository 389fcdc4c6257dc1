// prover-sample-gnark proves and verifies a chain of hashes with Groth16 over BN254: a prover of one's own, as the
// backend `command` runs it.
//
//	prover-sample-gnark setup  --rounds 200 --program bundle
//	prover-sample-gnark prove  --program bundle --input seed --proof proof --public-values end
//	prover-sample-gnark verify --program bundle --proof proof --public-values end
//
// The input is the seed, a number in decimal or hexadecimal. The public values are the end of the chain, 32 bytes,
// big-endian. `setup` draws secret randomness and forgets it: whoever made it alone could have kept it, so for proofs
// that others shall trust, keys come from a ceremony.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/consensys/gnark-crypto/ecc"
	"github.com/consensys/gnark-crypto/ecc/bn254/fr"
	"github.com/consensys/gnark/backend/groth16"
	"github.com/consensys/gnark/frontend"
	"github.com/consensys/gnark/frontend/cs/r1cs"
	"github.com/consensys/gnark/logger"
)

// Exit codes: 0 done or accepted, 1 failed or refused, 64 wrong use, 65 the program or the input is at fault.
const (
	exitFailed  = 1
	exitUse     = 64
	exitBadData = 65
)

// badData is the fault of the program or the input: trying again would fail again.
type badData struct{ error }

func main() {
	logger.Disable()
	if len(os.Args) < 2 {
		fail(exitUse, "choose setup, prove or verify")
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	program := flags.String("program", "", "the bundle of circuit and keys")
	rounds := flags.Int("rounds", 200, "hashes in the chain (setup)")
	input := flags.String("input", "", "the seed (prove)")
	proof := flags.String("proof", "", "the proof")
	publicValues := flags.String("public-values", "", "the end of the chain")
	if err := flags.Parse(os.Args[2:]); err != nil {
		fail(exitUse, err.Error())
	}
	var err error
	switch os.Args[1] {
	case "setup":
		err = setup(*program, *rounds)
	case "prove":
		err = prove(*program, *input, *proof, *publicValues)
	case "verify":
		err = verify(*program, *proof, *publicValues)
	default:
		fail(exitUse, "there is no command "+os.Args[1]+": choose setup, prove or verify")
	}
	var data badData
	switch {
	case errors.As(err, &data):
		fail(exitBadData, err.Error())
	case err != nil:
		fail(exitFailed, err.Error())
	}
}

func fail(code int, message string) {
	fmt.Fprintln(os.Stderr, message)
	os.Exit(code)
}

func setup(program string, rounds int) error {
	if rounds < 1 || rounds > mostRounds {
		return fmt.Errorf("--rounds is %d, 1 to %d are possible", rounds, mostRounds)
	}
	began := time.Now()
	circuit, err := frontend.Compile(ecc.BN254.ScalarField(), r1cs.NewBuilder, &Chain{rounds: rounds})
	if err != nil {
		return err
	}
	proving, verifying, err := groth16.Setup(circuit)
	if err != nil {
		return err
	}
	fmt.Printf("%d rounds, %d constraints: keys made in %.1f s\n", rounds, circuit.GetNbConstraints(), time.Since(began).Seconds())
	return writeBundle(program, rounds, circuit, proving, verifying)
}

func prove(program, input, proof, publicValues string) error {
	began := time.Now()
	bundle, err := openBundle(program)
	if err != nil {
		return badData{err}
	}
	defer bundle.close()
	if _, err = bundle.verifyingKey(); err != nil {
		return badData{err}
	}
	circuit, err := bundle.circuit()
	if err != nil {
		return badData{err}
	}
	key, err := bundle.provingKey()
	if err != nil {
		return badData{err}
	}
	seed, err := readSeed(input)
	if err != nil {
		return badData{err}
	}
	end, err := endOf(seed, bundle.rounds)
	if err != nil {
		return err
	}
	loaded := time.Since(began)
	witness, err := frontend.NewWitness(&Chain{Seed: seed, End: end}, ecc.BN254.ScalarField())
	if err != nil {
		return err
	}
	made, err := groth16.Prove(circuit, key, witness)
	if err != nil {
		return err
	}
	var bytesOfProof bytes.Buffer
	if _, err := made.WriteTo(&bytesOfProof); err != nil {
		return err
	}
	bytesOfEnd := end.Bytes()
	if err := os.WriteFile(publicValues, bytesOfEnd[:], 0o644); err != nil {
		return err
	}
	fmt.Printf("%d constraints: loaded in %.1f s, proved in %.1f s\n", circuit.GetNbConstraints(), loaded.Seconds(), (time.Since(began) - loaded).Seconds())
	return os.WriteFile(proof, bytesOfProof.Bytes(), 0o644)
}

func readSeed(path string) (fr.Element, error) {
	var seed fr.Element
	text, err := os.ReadFile(path)
	if err != nil {
		return seed, err
	}
	if _, err := seed.SetString(strings.TrimSpace(string(text))); err != nil {
		return seed, errors.New("the input must be a number in decimal, or in hexadecimal after 0x")
	}
	return seed, nil
}

func verify(program, proof, publicValues string) error {
	bundle, err := openBundle(program)
	if err != nil {
		return badData{err}
	}
	defer bundle.close()
	key, err := bundle.verifyingKey()
	if err != nil {
		return badData{err}
	}
	end, err := os.ReadFile(publicValues)
	if err != nil {
		return err
	}
	var value fr.Element
	if err := value.SetBytesCanonical(end); err != nil {
		return fmt.Errorf("the public values are no element of the field: %w", err)
	}
	file, err := os.Open(proof)
	if err != nil {
		return err
	}
	defer file.Close()
	read := groth16.NewProof(ecc.BN254)
	count, err := read.ReadFrom(file)
	if err != nil {
		return fmt.Errorf("this is no proof: %w", err)
	}
	if info, err := file.Stat(); err != nil || info.Size() != count {
		return errors.New("there are bytes after the proof")
	}
	witness, err := frontend.NewWitness(&Chain{End: value}, ecc.BN254.ScalarField(), frontend.PublicOnly())
	if err != nil {
		return err
	}
	return groth16.Verify(read, key, witness)
}
