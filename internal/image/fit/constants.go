package fit

// The names of the FIT format, as U-Boot's doc/usage/fit has them. This is all
// that Plan and Verify share.
const (
	name = "fit"

	fdtMagic = 0xd00dfeed

	imagesNode         = "images"
	configurationsNode = "configurations"
	signatureNode      = "signature" // prefix of a signature node's name
	hashNode           = "hash"      // prefix of a hash node's name
	cipherNode         = "cipher"
	verityNode         = "dm-verity"

	propData     = "data"
	propOffset   = "data-offset"
	propPosition = "data-position"
	propSize     = "data-size"

	propAlgo     = "algo"
	propValue    = "value"
	propHint     = "key-name-hint"
	propPadding  = "padding"
	propNodes    = "hashed-nodes"
	propStrings  = "hashed-strings"
	propSigned   = "sign-images"
	propStamp    = "timestamp"
	propIgnore   = "uboot-ignore"
	propDefault  = "default"
	propDesc     = "description"
	propCompat   = "compatible"
	propLoadOnly = "load-only"

	paddingPKCS = "pkcs-1.5"
	paddingPSS  = "pss"
)

// Limits that U-Boot's verifier has; an image beyond them cannot boot.
const (
	deviceMaxNodes   = 100  // nodes in the list of one configuration
	deviceMaxPaths   = 4096 // bytes of their paths
	deviceMaxPath    = 200  // bytes of any node's path in the tree
	deviceMaxDepth   = 32
	deviceMaxTotal   = 256 << 20 // FIT_SIGNATURE_MAX_SIZE's default
	maxConfigs       = 256
	maxSignaturesPer = 8
)
